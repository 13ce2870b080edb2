"""What can still be told of a zip archive whose directory is missing: a download that broke off.

PyTorch writes the pickle first, and a pickle says itself where it ends; so what the object was and
which names it has is known although its tensors are cut off. That also keeps a file that was made
to look damaged from hiding what it would run.

Limits: only pickles whose local headers stand in the first megabyte are found, and of a packed one
the first megabyte is read. TorchScript writes its tensors first, and of a large program nothing is
found.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from torchkeep.contents import Contents, Object, Storage, Value
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import Readable
from torchkeep.formats.torch.objects import parse_storage_id, storage_entry
from torchkeep.formats.torch.unpickling import run_torch_pickle
from torchkeep.formats.zips.structs import DEFLATED, LOCAL, LOCAL_MAGIC
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.pickled import PERSISTENT_ID, Pickled
from torchkeep.pickles.source import ByteSource

_WINDOW = 1 << 20
_MOST_PICKLES = 8
"""They may lie in one another, so each has its part of the limits."""


def salvage(file: Readable, limits: Limits, problem: DamagedFile) -> Contents:
    """Return what the pickles at the archive's start say, with `problem` as the file's own.

    Args:
        file: the archive.
        limits: bounds of the work.
        problem: why its directory can't be read.

    Raises:
        DamagedFile: there is no pickle at its start; it is `problem`.
    """
    steps = max(limits.steps // _MOST_PICKLES, 1)
    share = replace(limits, steps=steps, copied_nbytes=limits.copied_nbytes // _MOST_PICKLES)
    found = {name: _run(source, share) for name, source in _pickles(file)}
    if not found:
        raise problem
    main = next((name for name in found if PurePosixPath(name).name == "data.pkl"), None)
    outcomes = list(found.values())
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container="archive" if main is None else "torch-zip",
        root=None if main is None else found[main].root,
        pickle_protocol=None if main is None else found[main].protocol,
        globals=tuple(dict.fromkeys(name for outcome in outcomes for name in outcome.globals)),
        findings=tuple(dict.fromkeys(item for outcome in outcomes for item in outcome.findings)),
        problem=problem,
    )


def _pickles(file: Readable) -> Iterator[tuple[str, ByteSource]]:
    """Yield the name and the bytes of the pickles that start within the window."""
    window = file.read_at(0, min(file.nbytes, _WINDOW))
    at, count = window.find(LOCAL_MAGIC), 0
    while 0 <= at <= len(window) - LOCAL.size and count < _MOST_PICKLES:
        fields = LOCAL.unpack_from(window, at)
        end = at + LOCAL.size + fields[9]
        start = end + fields[10]
        # Only the name's end is looked at first: every few bytes may claim a name of 64 KB.
        is_pickle = window[max(end - _LONGEST_SUFFIX, 0) : end].lower().endswith(_SUFFIXES)
        if is_pickle and start < file.nbytes:
            count += 1
            name = window[at + LOCAL.size : end].decode("utf-8", "replace")
            yield name, _source(file, start, is_packed=fields[3] == DEFLATED)
        at = window.find(LOCAL_MAGIC, at + 1)


_SUFFIXES = (b".pkl", b".pickle")
_LONGEST_SUFFIX = max(map(len, _SUFFIXES))


def _source(file: Readable, start: int, *, is_packed: bool) -> ByteSource:
    """Return the bytes from `start` on; how many are the pickle's, its STOP tells."""
    if not is_packed:
        return ByteSource(file.read_at, start, file.nbytes)
    packed = file.read_at(start, min(file.nbytes - start, _WINDOW))
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _WINDOW)
    except zlib.error:
        data = b""
    return ByteSource.of_bytes(data)


def _run(source: ByteSource, limits: Limits) -> Pickled:
    """Return what a pickle holds, or what it had named before it broke."""
    try:
        return run_torch_pickle(source, persistent=_lost_storages(), limits=limits)
    except FileProblem as problem:
        seen: Pickled = problem.seen or Pickled(None, (), (), 0)
        return replace(seen, root=None)


def _lost_storages() -> Callable[[Value], Value]:
    """Return what makes tensors without their bytes out of the persistent ids of storages."""
    storages: dict[str, Storage] = {}

    def load(pid: Value) -> Value:
        parts = parse_storage_id(pid)
        if parts is None:
            return Object(PERSISTENT_ID, (pid,))
        lost = Storage(parts.key, parts.nbytes, None, parts.device)
        return storage_entry(storages.setdefault(parts.key, lost), parts)

    return load
