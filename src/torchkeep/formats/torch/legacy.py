"""The stream that `torch.save` wrote from PyTorch 0.1.10 to 1.5.

Layout: five pickles end to end, then the storages:

    magic number 0x1950a86a20f9469cfc6c
    protocol version 1001
    system info: {'protocol_version', 'little_endian', 'type_sizes'}
    the object; tensors are persistent ids, module classes carry their source text
    the list of storage keys, sorted
    per key: an int64 count of elements, and the raw bytes

The bytes are little endian whatever the system information says: PyTorch always wrote them so.
Only the counts were, up to PyTorch 1.5, in the order of the machine.

Limits: where a storage lies follows from the keys behind the object, and so the object's pickle
is read twice: once to learn the storages' types, once to place them.

Source: torch/serialization.py (`_legacy_save`, `_legacy_load`).
"""

from __future__ import annotations

import contextlib
from typing import Literal

from torchkeep.contents import ITEM_SIZE, Contents, Finding, Global, Object, Storage, Value
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import Readable
from torchkeep.formats.format import Format
from torchkeep.formats.torch.objects import (
    PersistentLoad,
    StorageId,
    parse_storage_id,
    storage_entry,
)
from torchkeep.formats.torch.unpickling import run_torch_pickle, weights_only_notes, with_earlier
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import PERSISTENT_ID, Pickled
from torchkeep.pickles.source import ByteSource

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_LONGEST_MAGIC = 64


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the first pickle is PyTorch's magic number, in whatever protocol."""
    del nbytes
    source = ByteSource.of_bytes(head[:_LONGEST_MAGIC])
    with contextlib.suppress(FileProblem):
        return bool(run_pickle(source).root == MAGIC)
    return False


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the stream holds. The storages are stepped over."""
    stream = _Stream(file, limits)
    try:
        return stream.describe()
    except FileProblem as problem:
        problem.seen = problem.seen or stream.so_far()
        raise


class _Stream:
    """One reading of a legacy file."""

    def __init__(self, file: Readable, limits: Limits) -> None:
        self.file = file
        self.limits = limits
        self.source = ByteSource(file.read_at, 0, file.nbytes)
        self.findings: list[Finding] = []
        self.globals: dict[Global, None] = {}
        self.sources: dict[str, str] = {}
        self.count_order: Literal["little", "big"] = "little"

    def describe(self) -> Contents:
        metadata = self.read_preamble()
        object_start = self.source.position
        ids: dict[str, StorageId] = {}
        pickled = self.run(lambda pid: self.collect(pid, ids))
        keys = self.run(None).root
        storages = self.place_storages(keys, ids)
        if ids:
            source = ByteSource(self.file.read_at, object_start, self.file.nbytes)
            pickled = self.run(lambda pid: self.resolve(pid, storages), source)
        return Contents(
            path=self.file.path,
            nbytes=self.file.nbytes,
            container=FORMAT.name,
            root=pickled.root,
            metadata=metadata,
            pickle_protocol=pickled.protocol,
            globals=tuple(self.globals),
            sources=self.sources,
            findings=tuple(dict.fromkeys(self.findings)),
        )

    def run(self, persistent: PersistentLoad | None, source: ByteSource | None = None) -> Pickled:
        """Run one of the pickles. What any of them names, the magic number's too, is kept."""
        try:
            pickled = run_torch_pickle(
                source or self.source, persistent=persistent, limits=self.limits
            )
        except FileProblem as problem:
            problem.seen = with_earlier(problem.seen, self.globals, self.findings)
            raise
        self.globals.update(dict.fromkeys(pickled.globals))
        self.findings += (*pickled.findings, *weights_only_notes(pickled))
        return pickled

    def so_far(self) -> Pickled:
        """Return what the pickles up to here have named."""
        return Pickled(None, tuple(self.globals), tuple(self.findings), 0)

    def read_preamble(self) -> dict[str, str]:
        """Step over the first three pickles and return what they say."""
        self.run(None)
        protocol = self.run(None).root
        if protocol != PROTOCOL:
            found = f"is {protocol}" if isinstance(protocol, int) else "is no number"
            raise DamagedFile(f"the stream's protocol {found}; only {PROTOCOL} is known")
        info = self.run(None).root
        if not isinstance(info, dict):
            raise DamagedFile("the stream has no system information where it belongs")
        if info.get("little_endian") is False:
            self.count_order = "big"
        return {"protocol_version": str(protocol), "machine": f"{self.count_order} endian"}

    def collect(self, pid: Value, ids: dict[str, StorageId]) -> Value:
        """Remember the storages that the object names. Their places are not known yet."""
        parts = parse_storage_id(pid)
        if parts is None:
            return self.resolve(pid, {})
        ids.setdefault(parts.key, parts)
        return storage_entry(Storage(parts.key, parts.nbytes, None, parts.device), parts)

    def place_storages(self, keys: Value, ids: dict[str, StorageId]) -> dict[str, Storage]:
        """Return the storages by key, each with its place in the file."""
        if not isinstance(keys, list):
            raise DamagedFile("the stream has no list of storages where it belongs")
        storages = {}
        position = self.source.position
        for key in keys:
            if not isinstance(key, str) or key not in ids or key in storages:
                raise DamagedFile(
                    "the stream lists a storage that is never used, or lists it twice"
                )
            nbytes = self.read_count(position, ids[key]) * ITEM_SIZE[ids[key].dtype]
            position += 8
            start = self.file.start + position
            device = ids[key].device
            storages[key] = Storage(key, nbytes, start, device, path=self.file.source)
            position += nbytes
        for key in ids.keys() - storages.keys():
            storages[key] = Storage(key, 0, None, ids[key].device)
            text = f"storage {key!r} is used and not in the file"
            self.findings.append(Finding("missing-storage", "damaged", key, text))
        if position > self.file.nbytes:
            raise DamagedFile(
                f"the file is truncated: its tensors need {position} bytes, "
                f"and it has {self.file.nbytes}",
                advice="Copy or download it again.",
            )
        if position < self.file.nbytes:
            text = f"{self.file.nbytes - position} bytes follow the last tensor"
            self.findings.append(Finding("trailing-bytes", "ambiguous", "", text))
        return storages

    def read_count(self, position: int, parts: StorageId) -> int:
        """Return the number of elements that stands before a storage's bytes."""
        raw = self.file.read_at(position, 8)
        if int.from_bytes(raw, self.count_order) == parts.numel:
            return parts.numel
        count = int.from_bytes(raw, "little", signed=True)
        if count < 0:
            raise DamagedFile(f"storage {parts.key!r} has a negative number of elements")
        if count != parts.numel:
            text = f"the pickle says {parts.numel} elements, the stream {count}"
            self.findings.append(Finding("storage-size", "damaged", parts.key, text))
        return count

    def resolve(self, pid: Value, storages: dict[str, Storage]) -> Value:
        """Return the storage, or the class, that a persistent id names."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            _, cls, _, text = pid
            if isinstance(cls, Global) and isinstance(text, str):
                self.sources.setdefault(str(cls), text)
            return cls
        parts = parse_storage_id(pid)
        if parts is None or parts.key not in storages:
            text = "a persistent id names no storage"
            self.findings.append(Finding("persistent-id", "ambiguous", "", text))
            return Object(PERSISTENT_ID, (pid,))
        return storage_entry(storages[parts.key], parts)


FORMAT = Format("torch-legacy", sniff, describe)
