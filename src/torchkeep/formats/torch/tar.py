"""The tar archive that `torch.save` wrote before PyTorch 0.1.10.

Layout: a tar of four files, whose order does not matter. `<n>` is a pickle of a number.

    sys_info    pickle of {'protocol_version', 'little_endian', 'type_sizes'}
    storages    <n>, n times: pickle of (key, location, class), an int64 count, the raw bytes;
                then a pickle of the views: a list of (key, key of the whole, offset, count)
    tensors     <n>, n times: pickle of (key, key of its storage, class), an int32 number of
                dimensions, 4 bytes of nothing, the int64 sizes, strides and offset
    pickle      the object; tensors and storages are persistent ids, their keys as text; module
                classes are persistent ids, too: (class, source file, source text)

All numbers are little endian, offsets and counts are in elements.

`torch.load` takes any tar for one of these whose file `storages` it can unpack, and runs the
pickles of `storages` and `tensors` before it looks at `pickle`; it refuses them all where
`weights_only` is set.

Limits: none known. A tar that is packed is described as an archive.

Source: torch/serialization.py (`_legacy_load.legacy_load`), torch/csrc/StorageMethods.cpp
(`_new_with_file`); the writer was removed in PyTorch 0.1.10.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torchkeep.contents import (
    ITEM_SIZE,
    Contents,
    Finding,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
)
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import FilePart, Readable
from torchkeep.formats.archives.tar_directory import TarEntry
from torchkeep.formats.torch.objects import STORAGE_DTYPES, rebuild_tensor_v2
from torchkeep.formats.torch.unpickling import run_torch_pickle
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.pickled import PERSISTENT_ID, Pickled
from torchkeep.pickles.source import ByteSource

NAMES = ("sys_info", "pickle", "tensors", "storages")
_FIRST, _RUN_FIRST = NAMES[0], NAMES[-1]
_MOST_DIMENSIONS = 1_000


def is_meant(names: Sequence[str]) -> bool:
    """Whether a tar of these files is, or was, one of PyTorch's: it starts as such, or runs."""
    return names[:1] == [_FIRST] or _RUN_FIRST in names


def describe(
    file: Readable,
    entries: Sequence[TarEntry],
    findings: tuple[Finding, ...],
    problem: FileProblem | None,
    limits: Limits,
) -> Contents:
    """Return what the archive holds. The storages are stepped over.

    Args:
        file: the archive.
        entries: what is in it, in order.
        findings: what is odd about the tar itself.
        problem: what broke the way through it.
        limits: bounds of the work.
    """
    reading = _Reading(file, entries, limits)
    reading.findings += findings
    root = None
    try:
        root = reading.read()
    except FileProblem as broken:
        problem = problem or broken
        if broken.seen is not None:
            reading.keep(broken.seen)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container="torch-tar",
        root=root,
        metadata=reading.metadata,
        pickle_protocol=reading.protocol,
        globals=tuple(reading.globals),
        sources=reading.sources,
        findings=tuple(dict.fromkeys(reading.findings)),
        problem=problem,
    )


class _Reading:
    """One reading of such an archive."""

    def __init__(self, file: Readable, entries: Sequence[TarEntry], limits: Limits) -> None:
        self.file = file
        # Of several files with one name, tarfile takes the last.
        self.entries = {entry.name: entry for entry in entries}
        self.limits = limits
        self.findings: list[Finding] = []
        self.globals: dict[Global, None] = {}
        self.sources: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.protocol: int | None = None
        self.objects: dict[int, TensorEntry] = {}
        """Storages, as flat tensors, and tensors, by the number that stands for them."""

    def read(self) -> Value:
        """Return the object."""
        self.note_strangers()
        if "sys_info" in self.entries:
            self.read_facts()
        self.read_storages(self.part("storages"))
        self.read_tensors(self.part("tensors"))
        part = self.part("pickle")
        pickled = self.run(part, self.source(part), self.load)
        self.protocol = pickled.protocol
        return pickled.root

    def note_strangers(self) -> None:
        for name in self.entries:
            if name not in NAMES:
                text = "PyTorch does not look at this file"
                self.findings.append(Finding("extra-record", "note", name, text))

    def part(self, name: str) -> FilePart:
        """Return the file of this name in the archive."""
        entry = self.entries.get(name)
        if entry is None:
            raise DamagedFile(f"the archive has no file {name!r}, without which it can't be loaded")
        if entry.kind != "file":
            # tarfile would follow a link to wherever it leads.
            text = f"it is a {entry.kind}, and PyTorch reads what stands there in its place"
            self.findings.append(Finding("link", "dangerous", name, text))
            raise DamagedFile(f"the archive's {name!r} is a {entry.kind}, not a file")
        return FilePart(self.file, entry.offset, entry.nbytes)

    @staticmethod
    def source(part: FilePart, position: int = 0) -> ByteSource:
        return ByteSource(part.read_at, position, part.nbytes)

    def run(
        self,
        part: FilePart,
        source: ByteSource,
        persistent: Callable[[Value], Value] | None = None,
        *,
        is_last: bool = True,
    ) -> Pickled:
        """Run one pickle and keep what it names. Behind the last one of a file is nothing."""
        pickled = run_torch_pickle(source, persistent=persistent, limits=self.limits)
        self.keep(pickled)
        if is_last and source.position < part.nbytes:
            text = f"{part.nbytes - source.position} bytes follow the last pickle of a file in it"
            self.findings.append(Finding("trailing-bytes", "ambiguous", "", text))
        return pickled

    def keep(self, pickled: Pickled) -> None:
        """Keep what a pickle named."""
        self.globals.update(dict.fromkeys(pickled.globals))
        self.findings += pickled.findings

    def read_facts(self) -> None:
        """Read what the archive says of the machine that it was written on."""
        part = self.part("sys_info")
        info = self.run(part, self.source(part)).root
        if not isinstance(info, dict):
            raise DamagedFile("the archive has no system information where it belongs")
        version = info.get("protocol_version")
        order = "big" if info.get("little_endian") is False else "little"
        self.metadata = {"protocol_version": str(version), "machine": f"{order} endian"}

    def run_count(self, part: FilePart, source: ByteSource, what: str) -> int:
        count = self.run(part, source, is_last=False).root
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise DamagedFile(f"the archive does not say how many {what} it has")
        return count

    def read_storages(self, part: FilePart) -> None:
        source = self.source(part)
        for _ in range(self.run_count(part, source, "storages")):
            head = self.run(part, source, is_last=False).root
            key, device, dtype = _parse_storage(head)
            start = source.position + 8
            nbytes = int.from_bytes(source.take(8), "little", signed=True) * ITEM_SIZE[dtype]
            if not 0 <= nbytes <= part.nbytes - start:
                raise DamagedFile(
                    f"storage {key} of the archive says it has {nbytes} bytes, "
                    f"and {part.nbytes - start} are there",
                    advice="Copy or download the file again.",
                )
            storage = Storage(str(key), nbytes, part.start + start, device, path=part.source)
            numel = nbytes // ITEM_SIZE[dtype]
            self.objects[key] = TensorEntry(dtype, (numel,), (1,), storage)
            source = self.source(part, start + nbytes)
        self.read_views(self.run(part, source).root)

    def read_views(self, views: Value) -> None:
        """Read which storages are parts of others."""
        if not isinstance(views, list):
            raise DamagedFile("the archive has no list of parts of storages where it belongs")
        for view in views:
            if not isinstance(view, tuple) or len(view) != 4 or not all(map(_is_number, view)):
                raise DamagedFile("the archive's list of parts of storages is broken")
            key, whole_key, offset, numel = view
            whole = self.object(whole_key)
            if offset < 0 or numel < 0 or offset + numel > whole.numel:
                raise DamagedFile(
                    f"storage {key} is elements {offset} to {offset + numel} of another one, "
                    f"which has {whole.numel}"
                )
            start = whole.storage_offset + offset
            self.objects[key] = replace(whole, shape=(numel,), storage_offset=start)

    def read_tensors(self, part: FilePart) -> None:
        source = self.source(part)
        count = self.run_count(part, source, "tensors")
        for _ in range(count):
            head = self.run(part, source, is_last=False).root
            if not isinstance(head, tuple) or len(head) != 3 or not all(map(_is_number, head[:2])):
                raise DamagedFile("the archive's table of tensors is broken")
            num_dimensions = struct.unpack("<i4x", source.take(8))[0]
            if not 0 <= num_dimensions <= _MOST_DIMENSIONS:
                raise DamagedFile(f"tensor {head[0]} has {num_dimensions} dimensions")
            numbers = struct.unpack(
                f"<{2 * num_dimensions + 1}q", source.take(8 * (2 * num_dimensions + 1))
            )
            self.objects[head[0]] = self.tensor(head, numbers, num_dimensions)
        if source.remaining:
            text = f"{source.remaining} bytes follow the last tensor"
            self.findings.append(Finding("trailing-bytes", "ambiguous", "tensors", text))

    def tensor(
        self, head: tuple[Any, ...], numbers: tuple[int, ...], num_dimensions: int
    ) -> TensorEntry:
        shape, stride = numbers[:num_dimensions], numbers[num_dimensions:-1]
        storage = self.object(head[1])
        try:
            return rebuild_tensor_v2(storage, numbers[-1], shape, stride, False, None)
        except ValueError as error:
            raise DamagedFile(f"tensor {head[0]} of the archive is broken: {error}") from None

    def object(self, key: int) -> TensorEntry:
        if key not in self.objects:
            raise DamagedFile(f"the archive asks for storage {key}, which it does not have")
        return self.objects[key]

    def load(self, pid: Value) -> Value:
        """Return the tensor, storage or class that a persistent id names."""
        if isinstance(pid, tuple) and len(pid) == 3:
            cls, _, text = pid
            if isinstance(cls, Global) and isinstance(text, str):
                self.sources.setdefault(str(cls), text)
            return cls
        key = _parse_key(pid)
        if key is not None and key in self.objects:
            return self.objects[key]
        text = "a persistent id names no tensor"
        self.findings.append(Finding("persistent-id", "ambiguous", "pickle", text))
        return Object(PERSISTENT_ID, (pid,))


def _parse_storage(head: Value) -> tuple[int, str, str]:
    """Return a storage's key, device and element type."""
    if isinstance(head, tuple) and len(head) == 3:
        key, device, cls = head
        is_storage = isinstance(cls, Global) and cls.name in STORAGE_DTYPES
        if _is_number(key) and isinstance(device, str) and is_storage:
            return key, device, STORAGE_DTYPES[cls.name]
    raise DamagedFile("the archive's table of storages is broken")


def _is_number(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64


def _parse_key(pid: Value) -> int | None:
    """Return the number that a persistent id stands for, as `int` reads it."""
    if _is_number(pid):
        return int(pid)
    if isinstance(pid, str) and pid.isascii() and pid.isdecimal() and len(pid) <= 20:
        return int(pid)
    return None
