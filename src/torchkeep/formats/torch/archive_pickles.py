"""The pickles of one archive, and the storages that they ask for.

An archive of a program holds several pickles that share storages. Each is run as data; what any of
them names is kept together, because whoever loads the archive runs all of them.

Source: torch/csrc/jit/serialization/import_read.cpp, torch/package/package_importer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torchkeep.contents import ITEM_SIZE, Finding, Global, Object, Storage, TensorEntry, Value
from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent
from torchkeep.formats.torch.objects import (
    PersistentLoad,
    StorageId,
    build_tensor,
    parse_storage_id,
    rebuild_tensor_v2,
    storage_entry,
)
from torchkeep.formats.torch.unpickling import (
    TORCH_CONSTRUCTORS,
    bytes_behind,
    run_torch_pickle,
    with_earlier,
)
from torchkeep.formats.zips.records import read_byteorder, read_facts
from torchkeep.formats.zips.rooted import Archive
from torchkeep.formats.zips.structs import STORED
from torchkeep.pickles.machine import run_pickle
from torchkeep.pickles.pickled import PERSISTENT_ID, Builder, Constructor, Pickled
from torchkeep.pickles.source import ByteSource


class ArchivePickles:
    """The pickles of an archive, run one by one.

    Attributes:
        archive: the archive.
        facts: what it says about itself.
        names: every name that a pickle mentioned so far.
        findings: what is odd about the pickles and their storages.
        protocol: the highest protocol of a pickle; None before the first.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.facts = read_facts(archive)
        self.byteorder = read_byteorder(self.facts)
        self.names: dict[Global, None] = {}
        self.findings: list[Finding] = []
        self.protocol: int | None = None
        self._storages: dict[str, Storage] = {}
        self._declared: dict[str, int] = {}

    def run(
        self,
        name: str,
        persistent: PersistentLoad | None = None,
        *,
        calls: Mapping[str, Constructor] | None = None,
        builder: Builder = build_tensor,
    ) -> Value:
        """Return what the pickle in a record holds, tensors as entries.

        Args:
            name: the record below the archive's root; it must be there.
            persistent: what a persistent id stands for; see `storages_in`.
            calls: calls that are answered besides the usual ones, if it was written in C++.
            builder: as for `run_pickle`, if it was written in C++.

        Raises:
            DamagedFile, LimitReached, UnsupportedContent: as `read_record` and `run_pickle` do.
                What the pickles had named until then is in the error's `seen`.
        """
        source = ByteSource.of_bytes(self.archive.read(name))
        limits = self.archive.limits
        try:
            if calls is None:
                pickled = run_torch_pickle(source, persistent=persistent, limits=limits)
            else:
                pickled = run_pickle(
                    source,
                    persistent=persistent,
                    constructors={**TORCH_CONSTRUCTORS, **calls},
                    builder=builder,
                    limits=limits,
                )
        except FileProblem as problem:
            problem.seen = with_earlier(problem.seen, self.names, self.findings)
            raise
        self._keep(name, pickled)
        self.findings += bytes_behind(source, name)
        return pickled.root

    def _keep(self, name: str, pickled: Pickled) -> None:
        self.names.update(dict.fromkeys(pickled.globals))
        self.findings += [finding.within(name) for finding in pickled.findings]
        self.protocol = max(self.protocol or 0, pickled.protocol)

    def storages_in(self, folder: str, suffix: str = "") -> PersistentLoad:
        """Return what answers the persistent ids of a pickle whose storages lie in a folder.

        Args:
            folder: the start of the storages' records, below the archive's root.
            suffix: what a record's name has behind the key.
        """
        return lambda pid: self._load(pid, folder, suffix)

    def _load(self, pid: Value, folder: str, suffix: str) -> Value:
        parts = parse_storage_id(pid)
        if parts is None:
            text = "a persistent id names no storage"
            self._note(Finding("persistent-id", "ambiguous", folder, text))
            return Object(PERSISTENT_ID, (pid,))
        name = f"{folder}{parts.key}{suffix}"
        declared = self._declared.setdefault(name, parts.nbytes)
        if declared != parts.nbytes:
            text = f"storage {name} is declared with {declared} and {parts.nbytes} bytes"
            self._note(Finding("storage-size", "ambiguous", name, text))
        if name not in self._storages:
            self._storages[name] = self._find(name, parts)
        return storage_entry(self._storages[name], parts)

    def _find(self, name: str, parts: StorageId) -> Storage:
        if parts.device == "meta":
            return Storage(name, parts.nbytes, None, parts.device)
        # PyTorch does not look for the record of a storage without elements.
        storage = self._record(name, parts.device, needed=parts.nbytes > 0)
        if not storage.nbytes and name.startswith(_FREED):
            return Storage(name, parts.nbytes, None, "meta")
        if storage.nbytes != parts.nbytes:
            text = f"the pickle says {parts.nbytes} bytes, record {name} has {storage.nbytes}"
            self._note(Finding("storage-size", "damaged", name, text))
        # The smaller of the two: nothing may look behind what the file has.
        return replace(storage, nbytes=min(storage.nbytes, parts.nbytes))

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: Value,
        stride: Value,
        offset: Value,
        *,
        requires_grad: bool = False,
        device: str = "cpu",
    ) -> TensorEntry:
        """Return a view of the storage that is a whole record; views of one record share it.

        Args:
            name: the record below the archive's root.
            dtype: the type of its elements.
            shape: its sizes.
            stride: its strides, in elements.
            offset: the elements before its first one.
            requires_grad: as saved.
            device: where it was saved from.

        Raises:
            ValueError: there are no such elements, or these are no sizes.
            UnsupportedContent: the record is compressed.
        """
        if name not in self._storages:
            self._storages[name] = self._record(name, device)
        storage = self._storages[name]
        whole = TensorEntry(dtype, (storage.nbytes // ITEM_SIZE[dtype],), (1,), storage)
        return rebuild_tensor_v2(whole, offset, shape, stride, requires_grad, None)

    def _record(self, name: str, device: str, *, needed: bool = True) -> Storage:
        """Return the storage that is a whole record; an empty one if there is no such record."""
        record = self.archive.record(name)
        if record is None:
            if needed:
                text = f"there is no record {name}"
                self._note(Finding("missing-storage", "damaged", name, text))
            return Storage(name, 0, None, device)
        if record.method != STORED:
            raise UnsupportedContent(f"tensor bytes {name} are compressed")
        return Storage(
            key=name,
            # The directory may tell two sizes, of which only one is checked against the file.
            nbytes=min(record.nbytes, record.packed_nbytes),
            offset=self.archive.file.start + record.offset,
            device=device,
            byteorder=self.byteorder,
            crc32=record.crc32 or None,
            path=self.archive.file.source,
        )

    def _note(self, finding: Finding) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(finding)


_FREED = "traced_inputs/"
"""Storages that PyTorch may free before it writes them; such inputs have shapes and no bytes."""
_MOST_FINDINGS = 1_000
"""More are not kept: a file can't make the report endless."""


def require(archive: Archive, name: str) -> None:
    """Raise `DamagedFile` unless the archive has a record of this name below its root."""
    if archive.record(name) is None:
        raise DamagedFile(
            f"the archive has no record {name}", advice="Copy or download the file again."
        )
