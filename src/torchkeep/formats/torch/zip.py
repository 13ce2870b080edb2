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

from torchkeep.contents import Contents, Deflated, Finding, Object, Storage, Value
from torchkeep.errors import UnsupportedContent
from torchkeep.formats.own import one_file
from torchkeep.formats.own.metadata import METADATA_RECORD, parse_texts
from torchkeep.formats.torch.objects import parse_storage_id, storage_entry
from torchkeep.formats.torch.unpickling import bytes_behind, run_torch_pickle, weights_only_notes
from torchkeep.formats.zips.directory import Record
from torchkeep.formats.zips.records import (
    OWN_RECORDS,
    hidden_code,
    odd_records,
    read_byteorder,
    read_facts,
    record_head,
)
from torchkeep.formats.zips.rooted import Archive
from torchkeep.formats.zips.structs import DEFLATED, STORED
from torchkeep.pickles.pickled import PERSISTENT_ID
from torchkeep.pickles.source import ByteSource

CONTAINER = "torch-zip"

_RECORDS = (*OWN_RECORDS, "data.pkl", METADATA_RECORD)


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
    findings += (*weights_only_notes(pickled), *bytes_behind(source, "data.pkl"))
    kind, problems = one_file.told(pickled.root)
    findings += problems
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
        kind=kind,
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
        self.facts = read_facts(archive)
        self.metadata = self._read_metadata()
        self.byteorder = read_byteorder(self.facts)
        self._note_records()

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

    def _note_records(self) -> None:
        """Note what PyTorch would miss in the archive, and what it would not look at."""
        if not any(self.root + name in self.records for name in _VERSIONS):
            text = "there is no record version, without which PyTorch does not load the archive"
            self.findings.append(Finding("missing-record", "damaged", "version", text))
        self.findings += odd_records(self.archive, _is_known, _RECORDS, is_refused_outside=True)

    def note_unused(self) -> None:
        """Note the records of storages that no tensor uses, and that are code or pickles."""
        data = f"{self.root}data/"
        for name, record in self.records.items():
            if name.startswith(data) and name.removeprefix(data) not in self.storages:
                hidden = hidden_code(name, record_head(self.archive, record))
                self.findings += [hidden] if hidden else []

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
        is_stored, start = record.method == STORED, self.archive.file.start + record.offset
        return Storage(
            key=key,
            # The smaller of the two: nothing may look behind what the file has.
            nbytes=min(nbytes, record.nbytes, record.packed_nbytes if is_stored else nbytes),
            offset=start if is_stored else None,
            deflated=None if is_stored else Deflated(start, record.packed_nbytes),
            path=self.archive.file.source,
            device=device,
            byteorder=self.byteorder,
            crc32=record.crc32 or None,
        )

    def _check_record(self, key: str, nbytes: int, record: Record) -> None:
        if record.method not in (STORED, DEFLATED):
            raise UnsupportedContent(f"tensor bytes data/{key} are packed by {record.method}")
        if record.method == DEFLATED:
            text = (
                "its storages are compressed; PyTorch unpacks them, but not where it maps the file"
            )
            self.findings.append(Finding("compressed", "ambiguous", "", text))
        if nbytes != record.nbytes:
            text = f"the pickle says {nbytes} bytes, record data/{key} has {record.nbytes}"
            self.findings.append(Finding("storage-size", "damaged", key, text))


_VERSIONS = ("version", ".data/version")
"""Where PyTorch looks for the archive's version."""


def _is_known(name: str) -> bool:
    return name in _RECORDS or (name.startswith("data/") and name[5:].isdigit())
