"""The zip archive that `torch.save` has written since PyTorch 1.6.

Layout: a zip of stored records below one root folder (the file's stem, or `archive`):

    <root>/data.pkl               the object; tensors are persistent ids
    <root>/data/<key>             the raw bytes of each storage, 64-byte aligned in newer files
    <root>/byteorder              `little` or `big`; absent means little
    <root>/version                the archive's version, `3`
    <root>/.format_version, .storage_alignment, .data/serialization_id   newer files
    <root>/torchkeep.json         metadata, in files that torchkeep wrote: a JSON object of texts

Limits: records are found by name alone, never by order. Other kinds of archives that look the same
from outside are told apart in `zips.kinds`.

Source: torch/serialization.py, caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import zlib
from typing import Literal

from torchkeep.contents import Contents, Finding, Object, Storage, Value
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.formats.own import METADATA_RECORD, parse_texts
from torchkeep.formats.torch.objects import parse_storage_id, storage_entry
from torchkeep.formats.torch.pickles import run_torch_pickle, weights_only_notes
from torchkeep.formats.zips.archive import Archive
from torchkeep.formats.zips.directory import Record
from torchkeep.formats.zips.structs import DEFLATED, STORED
from torchkeep.pickles.pickled import PERSISTENT_ID
from torchkeep.pickles.source import ByteSource

CONTAINER = "torch-zip"

_FACTS = ("version", ".format_version", "byteorder", ".storage_alignment")
"""Records that each hold one short text about the archive itself."""
_RECORDS = ("data.pkl", ".data/serialization_id", METADATA_RECORD, *_FACTS)
_LONGEST_FACT = 64

_CODE_SUFFIXES = (".py", ".pyc", ".pkl", ".pickle", ".debug_pkl", ".so", ".dll", ".dylib", ".sh")


def describe(archive: Archive) -> Contents:
    """Return what the archive holds. Only its directory and its pickle are read."""
    reading = _Reading(archive)
    source = ByteSource.of_bytes(archive.read("data.pkl"))
    pickled = run_torch_pickle(source, persistent=reading.load, limits=archive.limits)
    if any(name.module.startswith("__torch__") for name in pickled.globals):
        # A module of TorchScript that was saved without its code is a module all the same.
        from torchkeep.formats.programs.torchscript_modules import sort_modules

        sort_modules(pickled.root, {}, archive.file.nbytes)
    reading.note_unused()
    findings = [*archive.directory.findings, *pickled.findings, *dict.fromkeys(reading.findings)]
    findings += weights_only_notes(pickled)
    if source.remaining:
        text = f"{source.remaining} bytes follow the pickle in its record"
        findings.append(Finding("trailing-bytes", "ambiguous", "data.pkl", text))
    return Contents(
        path=archive.file.path,
        nbytes=archive.file.nbytes,
        container=CONTAINER,
        root=pickled.root,
        # What the user calls `version` is worth more than the archive's own.
        metadata={**reading.facts, **reading.metadata},
        pickle_protocol=pickled.protocol,
        globals=pickled.globals,
        findings=tuple(findings),
    )


class _Reading:
    """The archive's facts, and the storages that its pickle asked for."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.root = archive.root
        self.records = archive.directory.records
        self.findings: list[Finding] = []
        self.storages: dict[str, Storage] = {}
        self.declared: dict[str, int] = {}
        self.facts = self._read_facts()
        self.metadata = self._read_metadata()
        self.byteorder = self._byteorder()
        self._note_records()

    def _read_facts(self) -> dict[str, str]:
        facts = {}
        for name in _FACTS:
            record = self.archive.record(name)
            if record is not None and record.nbytes <= _LONGEST_FACT:
                facts[name.lstrip(".")] = self.archive.read(name).decode("utf-8", "replace").strip()
        return facts

    def _read_metadata(self) -> dict[str, str]:
        """Return what torchkeep and its user wrote about the file; empty in files of others."""
        record = self.archive.record(METADATA_RECORD)
        if record is None:
            return {}
        most = max(record.nbytes, record.packed_nbytes)
        self.archive.limits.check("header_nbytes", most)
        table = parse_texts(self.archive.read(METADATA_RECORD))
        if table is None:
            text = "the record of the metadata is no JSON object of texts"
            self.findings.append(Finding("metadata", "damaged", record.name, text))
            return {}
        return table

    def _byteorder(self) -> Literal["little", "big"]:
        order = self.facts.get("byteorder", "little")
        if order == "little":
            return "little"
        if order == "big":
            return "big"
        raise DamagedFile(f"the archive's byte order is {order!r}, neither little nor big")

    def _note_records(self) -> None:
        """Note what PyTorch would miss in the archive, and what it would not look at."""
        if not next(iter(self.records)).startswith(self.root):
            text = (
                "PyTorch takes the folder of the first record for the root, and it is another one"
            )
            self.findings.append(Finding("root-folder", "ambiguous", "", text))
        if f"{self.root}version" not in self.records:
            text = "there is no record version, without which PyTorch does not load the archive"
            self.findings.append(Finding("missing-record", "damaged", "version", text))
        known = {self.root + name for name in _RECORDS}
        data = f"{self.root}data/"
        self.findings += [
            self._stranger(name)
            for name in self.records
            if name not in known
            and not (name.startswith(data) and name.removeprefix(data).isdigit())
        ]

    def _stranger(self, name: str) -> Finding:
        """Return what is to be said of a record that is none of PyTorch's own by name."""
        folded = name.casefold()
        if folded in {(self.root + known).casefold() for known in _RECORDS}:
            text = "PyTorch, which ignores case, takes it for one of its own records"
            return Finding("case-variant", "ambiguous", name, text)
        if folded.endswith(_CODE_SUFFIXES):
            text = "a record of code or of another pickle is hidden in the archive"
            return Finding("hidden-code", "ambiguous", name, text)
        if self._starts_as_pickle(self.records[name]):
            return _hidden_pickle(name)
        return Finding("extra-record", "note", name, "PyTorch does not look at this record")

    def note_unused(self) -> None:
        """Note the records of storages that no tensor uses, and that are pickles."""
        data = f"{self.root}data/"
        self.findings += [
            _hidden_pickle(name)
            for name, record in self.records.items()
            if name.startswith(data)
            and name.removeprefix(data) not in self.storages
            and self._starts_as_pickle(record)
        ]

    def _starts_as_pickle(self, record: Record) -> bool:
        start = self.archive.file.read_at(record.offset, min(record.packed_nbytes, _START_NBYTES))
        if record.method == DEFLATED:
            try:
                start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, 2)
            except zlib.error:
                return False
        return start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05"

    def load(self, pid: Value) -> Value:
        """Return the storage that a persistent id names."""
        parts = parse_storage_id(pid)
        if parts is None:
            text = "a persistent id names no storage"
            self.findings.append(Finding("persistent-id", "ambiguous", "data.pkl", text))
            return Object(PERSISTENT_ID, (pid,))
        declared = self.declared.setdefault(parts.key, parts.nbytes)
        if parts.key not in self.storages:
            self.storages[parts.key] = self._storage(parts.key, parts.nbytes, parts.device)
        storage = self.storages[parts.key]
        if parts.nbytes != declared:
            text = f"storage {parts.key!r} is declared with {declared} and {parts.nbytes} bytes"
            self.findings.append(Finding("storage-size", "ambiguous", parts.key, text))
        return storage_entry(storage, parts)

    def _storage(self, key: str, nbytes: int, device: str) -> Storage:
        if device == "meta":
            return Storage(key, nbytes, None, device)
        record = self.archive.record(f"data/{key}")
        if record is None:
            text = f"there is no record data/{key}"
            self.findings.append(Finding("missing-storage", "damaged", key, text))
            return Storage(key, 0, None, device)
        self._check_record(key, nbytes, record)
        return Storage(
            key=key,
            # The smaller of the two: nothing may look behind what the file has.
            nbytes=min(nbytes, record.nbytes, record.packed_nbytes),
            offset=self.archive.file.start + record.offset if record.method == STORED else None,
            path=self.archive.file.source,
            device=device,
            byteorder=self.byteorder,
            crc32=record.crc32 or None,
        )

    def _check_record(self, key: str, nbytes: int, record: Record) -> None:
        if record.method != STORED:
            raise UnsupportedContent(f"tensor bytes data/{key} are compressed")
        if nbytes != record.nbytes:
            text = f"the pickle says {nbytes} bytes, record data/{key} has {record.nbytes}"
            self.findings.append(Finding("storage-size", "damaged", key, text))


_START_NBYTES = 64


def _hidden_pickle(name: str) -> Finding:
    text = "a record of code or of another pickle is hidden in the archive"
    return Finding("hidden-code", "ambiguous", name, text)
