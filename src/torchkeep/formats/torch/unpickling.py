"""The pickle inside every file of PyTorch's: one recipe for all containers.

Two things in a pickle are more than its opcodes. A tensor that was pickled without `torch.save` is
a call of `_load_from_bytes` with a whole file in the legacy format. And joblib writes the bytes of
an array into the stream, right behind the opcode that sets the array wrapper's state.

Source: torch/storage.py (`_load_from_bytes`), joblib/numpy_pickle.py (`NumpyArrayWrapper.read`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType

from torchkeep.contents import (
    Array,
    Contents,
    Finding,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
)
from torchkeep.errors import FileProblem
from torchkeep.files import MemoryFile, Readable
from torchkeep.formats.torch.layouts import LAYOUT_CONSTRUCTORS
from torchkeep.formats.torch.objects import PersistentLoad, build_tensor
from torchkeep.pickles.arrays import build_array, is_shape, item_size, parse_dtype
from torchkeep.pickles.constructors import CONSTRUCTORS
from torchkeep.pickles.dtypes import Dtypes
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import Constructor, Pickled
from torchkeep.pickles.source import ByteSource

TORCH_CONSTRUCTORS: Mapping[str, Constructor] = MappingProxyType(
    {**CONSTRUCTORS, **LAYOUT_CONSTRUCTORS}
)
"""The calls that every reader of PyTorch's pickles answers."""

_FILE_IN_BYTES = Global("torch.storage", "_load_from_bytes")
_JOBLIB_WRAPPERS = frozenset(
    f"{package}.numpy_pickle.NumpyArrayWrapper"
    for package in ("joblib", "sklearn.externals.joblib")
)


def run_torch_pickle(
    source: ByteSource,
    *,
    persistent: PersistentLoad | None = None,
    limits: Limits,
    file: Readable | None = None,
) -> Pickled:
    """Return what the pickle at the source's position holds, tensors as entries.

    Args:
        source: the bytes; it ends up behind the pickle's STOP.
        persistent: what a persistent id stands for in the container; without it the id stays.
        limits: bounds of the work.
        file: what the source reads, at the same offsets, if the pickle is a file by itself.

    Raises:
        DamagedFile, LimitReached, UnsupportedContent: as `run_pickle` does.
    """
    run = _Run(source, limits, file)
    try:
        pickled = run_pickle(
            source,
            persistent=persistent,
            constructors={**TORCH_CONSTRUCTORS, str(_FILE_IN_BYTES): run.load_from_bytes},
            builder=run.build,
            only_called=str(_FILE_IN_BYTES),
            limits=limits,
        )
    except FileProblem as problem:
        problem.seen = run.with_inner(problem.seen) if problem.seen else None
        raise
    return run.with_inner(pickled)


def weights_only_notes(pickled: Pickled) -> list[Finding]:
    """Return what keeps `torch.load(weights_only=True)` from a pickle besides the names in it."""
    if not pickled.unusual:
        return []
    opcodes = ", ".join(pickled.unusual)
    text = f"torch.load(weights_only=True) does not know the pickle's opcodes {opcodes}"
    return [Finding("weights-only", "note", "", text)]


def bytes_behind(source: ByteSource, record: str = "") -> list[Finding]:
    """Return what is to be said of bytes behind the pickle that a source was read for.

    Args:
        source: where the pickle stood, just run.
        record: the record of an archive that it is; none for a file by itself.
    """
    if not source.remaining:
        return []
    where = " in its record" if record else ""
    text = f"{source.remaining} bytes follow the pickle{where}"
    return [Finding("trailing-bytes", "ambiguous", record, text)]


def with_earlier(
    broken: Pickled | None, names: Iterable[Global], findings: Iterable[Finding]
) -> Pickled | None:
    """Return what a broken pickle has named, and those of the same file that were run before it.

    Args:
        broken: as far as it came; None if nothing of it was seen.
        names: those that the others mention.
        findings: what is odd about the others.
    """
    if broken is None:
        return None
    every = dict.fromkeys((*names, *broken.globals))
    return replace(broken, globals=tuple(every), findings=(*findings, *broken.findings))


class _Run:
    """What one pickle holds besides its own opcodes: whole files, and arrays behind opcodes."""

    def __init__(self, source: ByteSource, limits: Limits, file: Readable | None) -> None:
        self.source = source
        self.limits = limits
        self.file = file
        self.inner: dict[bytes, Contents | None] = {}
        self.behind: list[Pickled] = []
        self.dtypes = Dtypes()
        self.findings: list[Finding] = []

    def with_inner(self, pickled: Pickled) -> Pickled:
        """Return the pickle's outcome with the names and findings of the files inside it."""
        inner: list[Contents | Pickled] = [part for part in self.inner.values() if part is not None]
        inner += self.behind
        names = dict.fromkeys(pickled.globals)
        self.dtypes.finish()
        findings = [*pickled.findings, *self.findings, *self.dtypes.findings]
        for part in inner:
            names.update(dict.fromkeys(part.globals))
            findings += part.findings
        return replace(pickled, globals=tuple(names), findings=tuple(dict.fromkeys(findings)))

    def load_from_bytes(self, data: Value) -> Value:
        """Return what the file in these bytes holds; nothing of it is run."""
        if not isinstance(data, bytes):
            raise ValueError("a file in bytes needs bytes")
        if data not in self.inner:
            self.inner[data] = None  # a file can't hold itself
            self.inner[data] = self.examine(data)
        contents = self.inner[data]
        if contents is None or contents.problem is not None:
            return Object(_FILE_IN_BYTES, (data,))
        root = contents.root
        return _with_bytes(root, data) if isinstance(root, TensorEntry) else root

    def examine(self, data: bytes) -> Contents:
        # The readers of files use this module: it can meet them only when it is run.
        from torchkeep.formats import examine_open

        contents = examine_open(MemoryFile(data, Path("bytes in the pickle")), self.limits)
        if contents.problem is not None:
            text = f"a file inside the pickle can't be read: {contents.problem.problem}"
            self.findings.append(Finding("inner-file", "ambiguous", "", text))
        return contents

    def build(self, target: Value, state: Value) -> Value | None:
        """Return what BUILD makes of a tensor or an array; None for anything else."""
        if isinstance(target, Object) and target.class_path in _JOBLIB_WRAPPERS:
            return self.skip_array(state)
        self.dtypes.see(target, state)
        built = build_tensor(target, state)
        return build_array(target, state) if built is None else built

    def skip_array(self, state: Value) -> Array | None:
        """Return the array whose bytes stand here, and step over them."""
        if not isinstance(state, dict) or not is_shape(state.get("shape")):
            return None
        item_nbytes = item_size(state.get("dtype"))
        if item_nbytes is None:  # an array of objects is a pickle of its own
            self.behind.append(run_torch_pickle(self.source, limits=self.limits, file=self.file))
            return None
        if state.get("numpy_array_alignment_bytes") is not None:
            self.source.skip(self.source.take(1)[0])
        shape = state["shape"]
        kind = parse_dtype(state.get("dtype"))
        if kind is None:  # texts, dates, records: no tensor has them
            self.source.skip(prod(shape) * item_nbytes)
            return None
        dtype, order = kind
        nbytes = prod(shape) * item_nbytes
        offset = None if self.file is None else self.file.start + self.source.position
        path = None if self.file is None else self.file.source
        storage = Storage("", nbytes, offset, byteorder=order, path=path)
        self.source.skip(nbytes)
        return Array(dtype, shape, state.get("order") == "F", storage)


def _with_bytes(entry: TensorEntry, data: bytes) -> TensorEntry:
    """Return a tensor of a file in bytes with its part of them."""
    storage = entry.storage
    if storage.offset is None:
        return entry
    part = data[storage.offset : storage.offset + storage.nbytes]
    return replace(entry, storage=replace(storage, offset=None, path=None, data=part))
