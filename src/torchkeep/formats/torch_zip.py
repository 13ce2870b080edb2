"""The zip archive that `torch.save` has written since PyTorch 1.6.

Layout: a zip of stored records below one root folder (the file's stem, or `archive`):

    <root>/data.pkl               the object; tensors are persistent ids
    <root>/data/<key>             the raw bytes of each storage, 64-byte aligned in newer files
    <root>/byteorder              `little` or `big`; absent means little
    <root>/version                the archive's version, `3`
    <root>/.format_version, .storage_alignment, .data/serialization_id   newer files
    <root>/torchkeep.json         metadata, in files that torchkeep wrote: a JSON object of texts

Limits: TorchScript archives (`constants.pkl`, `code/`) and exported programs have the same outside
and are refused by name. Records are found by name alone, never by order.

Source: torch/serialization.py, caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

from typing import Literal

from torchkeep.contents import Contents, Finding, Object, Storage, Value
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats.format import Format
from torchkeep.formats.own import METADATA_RECORD, parse_texts
from torchkeep.formats.torch_objects import (
    TORCH_CONSTRUCTORS,
    build_tensor,
    parse_storage_id,
    storage_entry,
)
from torchkeep.formats.zip_directory import Directory, Record, read_directory
from torchkeep.formats.zip_directory import read_record as read_zip_record
from torchkeep.formats.zip_structs import LOCAL_MAGIC, STORED
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.machine import PERSISTENT_ID, run_pickle
from torchkeep.pickles.source import ByteSource

_FACTS = ("version", ".format_version", "byteorder", ".storage_alignment")
"""Records that each hold one short text about the archive itself."""
_RECORDS = ("data.pkl", ".data/serialization_id", METADATA_RECORD, *_FACTS)
_LONGEST_FACT = 64

_CODE_SUFFIXES = (".py", ".pyc", ".pkl", ".pickle", ".debug_pkl", ".so", ".dll", ".dylib", ".sh")

_OTHER_KINDS: dict[str, str] = {
    "constants.pkl": "a TorchScript archive",
    "archive_format": "an exported program (.pt2)",
    "serialized_exported_program.json": "an exported program (.pt2)",
    "models/model.json": "an exported program (.pt2)",
    "bytecode.pkl": "a TorchScript archive for the lite interpreter",
    ".data/version": "a torch.package archive",
    "model.json": "an archive of PyTorch's early C++ interface",
}
"""Records that mark another kind of archive, below its root folder."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a zip archive does."""
    del nbytes
    return head.startswith(LOCAL_MAGIC)


def describe(file: InputFile, limits: Limits) -> Contents:
    """Return what the archive holds. Only its directory and its pickle are read."""
    directory = read_directory(file, limits)
    archive = _Archive(file, directory, limits)
    source = ByteSource.of_bytes(archive.read("data.pkl"))
    pickled = run_pickle(
        source,
        persistent=archive.load,
        constructors=TORCH_CONSTRUCTORS,
        builder=build_tensor,
        limits=limits,
    )
    findings = [*directory.findings, *pickled.findings, *dict.fromkeys(archive.findings)]
    if source.remaining:
        text = f"{source.remaining} bytes follow the pickle in its record"
        findings.append(Finding("trailing-bytes", "ambiguous", "data.pkl", text))
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=pickled.root,
        # What the user calls `version` is worth more than the archive's own.
        metadata={**archive.facts, **archive.metadata},
        pickle_protocol=pickled.protocol,
        globals=pickled.globals,
        findings=tuple(findings),
    )


class _Archive:
    """The records below the archive's root, and the storages that the pickle asked for."""

    def __init__(self, file: InputFile, directory: Directory, limits: Limits) -> None:
        self.file = file
        self.limits = limits
        self.root = _root_folder(directory)
        self.records = directory.records
        self.findings: list[Finding] = []
        self.storages: dict[str, Storage] = {}
        self.declared: dict[str, int] = {}
        self.facts = self._read_facts()
        self.metadata = self._read_metadata()
        self.byteorder = self._byteorder()
        self._note_records()

    def read(self, name: str) -> bytes:
        return read_zip_record(self.file, self.records[self.root + name], self.limits)

    def _read_facts(self) -> dict[str, str]:
        facts = {}
        for name in _FACTS:
            record = self.records.get(self.root + name)
            if record is not None and record.nbytes <= _LONGEST_FACT:
                facts[name.lstrip(".")] = self.read(name).decode("utf-8", "replace").strip()
        return facts

    def _read_metadata(self) -> dict[str, str]:
        """Return what torchkeep and its user wrote about the file; empty in files of others."""
        record = self.records.get(self.root + METADATA_RECORD)
        if record is None:
            return {}
        self.limits.check("header_nbytes", max(record.nbytes, record.packed_nbytes))
        table = parse_texts(self.read(METADATA_RECORD))
        if table is None or not all(map(_is_utf8, (*table, *table.values()))):
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
        return Finding("extra-record", "note", name, "PyTorch does not look at this record")

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
        record = self.records.get(f"{self.root}data/{key}")
        if record is None:
            text = f"there is no record data/{key}"
            self.findings.append(Finding("missing-storage", "damaged", key, text))
            return Storage(key, 0, None, device)
        self._check_record(key, nbytes, record)
        return Storage(
            key=key,
            # The smaller of the two: nothing may look behind what the file has.
            nbytes=min(nbytes, record.nbytes),
            offset=record.offset if record.method == STORED else None,
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


def _is_utf8(text: str) -> bool:
    """Whether a text can be shown: JSON can hold half of a surrogate pair, which can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _root_folder(directory: Directory) -> str:
    """Return the root folder with its slash.

    Raises:
        UnsupportedContent: the archive is of another kind, named in the message.
        DamagedFile: it has no `data.pkl`, or several.
    """
    names = directory.records
    roots = [name.removesuffix("data.pkl") for name in names if name.count("/") == 1]
    roots = [root for root in roots if f"{root}data.pkl" in names and root.endswith("/")]
    roots = list(dict.fromkeys(roots))
    folders = dict.fromkeys(name.partition("/")[0] + "/" for name in names)
    for marker, kind in _OTHER_KINDS.items():
        if any(prefix + marker in names for prefix in (*folders, "")):
            raise UnsupportedContent(
                f"this is {kind}, which this version can name and not read",
                advice="Save the model's state_dict() with the program that made the file.",
            )
    if not roots:
        raise UnsupportedContent(
            f"this is a zip archive of {len(names)} records and none is a PyTorch data.pkl",
            advice="If there is a model file inside, unpack it and give that.",
        )
    if len(roots) > 1:
        raise DamagedFile(f"the archive has {len(roots)} records data.pkl, and one is expected")
    return roots[0]


FORMAT = Format("torch-zip", sniff, describe)
