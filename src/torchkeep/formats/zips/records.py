"""What is said about an archive's records besides its storages: facts, and records out of place.

PyTorch takes the folder of an archive's first record for the root, ignores case when it looks a
record up, and passes over whatever it does not know. So a record that only looks like one of its
own, and code that nobody asked for, are worth a word.

Source: caffe2/serialize/inline_container.cc (`PyTorchStreamReader::init`, `getRecordID`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from typing import Literal

from torchkeep.contents import Finding
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.formats.machine_code import is_native, is_pickle, is_source
from torchkeep.formats.zips.directory import Record
from torchkeep.formats.zips.rooted import Archive
from torchkeep.formats.zips.structs import DEFLATED, STORED
from torchkeep.pickles.limits import how_to_raise

FACTS = ("version", ".data/version", "byteorder", ".format_version", ".storage_alignment")
"""Records that each hold one short text about the archive itself."""
OWN_RECORDS = (*FACTS, ".data/serialization_id")
"""Records that PyTorch's writer adds to an archive of any kind."""
_LONGEST_FACT = 64

_HEAD_NBYTES = 64
"""How much of a record out of place is looked at."""


def read_facts(archive: Archive) -> dict[str, str]:
    """Return what the archive says about itself, by its records' bare names."""
    facts = {}
    for name in FACTS:
        record = archive.record(name)
        if record is not None and record.nbytes <= _LONGEST_FACT:
            text = archive.read(name).decode("utf-8", "replace").strip()
            facts[name.removeprefix(".data/").lstrip(".")] = text
    return facts


def read_byteorder(facts: dict[str, str]) -> Literal["little", "big"]:
    """Return the byte order of the archive's storages; archives without the fact are little endian.

    Raises:
        DamagedFile: it is neither of the two.
    """
    order = facts.get("byteorder", "little")
    if order == "little":
        return "little"
    if order == "big":
        return "big"
    raise DamagedFile(f"the archive's byte order is {order!r}, neither little nor big")


_FREE_NBYTES = 1 << 20


def check_packing(archive: Archive) -> None:
    """Bound what an archive's compressed records unfold to, all together.

    PyTorch compresses code alone, which gets ten times smaller.

    Raises:
        LimitReached: it is far more than that.
    """
    packed = [item for item in archive.directory.records.values() if item.method != STORED]
    nbytes = sum(item.nbytes for item in packed)
    packed_nbytes = sum(item.packed_nbytes for item in packed)
    most = archive.limits.expansion
    if nbytes > _FREE_NBYTES + most * packed_nbytes:
        raise LimitReached(
            f"the archive's compressed records unpack from {packed_nbytes} to {nbytes} bytes, "
            f"more than the limit expansion={most} times",
            advice=how_to_raise("expansion"),
        )


def odd_records(
    archive: Archive,
    is_known: Callable[[str], bool],
    known: Collection[str],
    *,
    is_refused_outside: bool = False,
) -> list[Finding]:
    """Return what is to be said about records that do not belong into an archive of this kind.

    Args:
        archive: the archive.
        is_known: whether a record of this name, below the root, belongs into it.
        known: the names that such an archive's reader asks for.
        is_refused_outside: whether PyTorch refuses such an archive for a record outside of its
            root folder; it does where it lists the records.
    """
    records = archive.directory.records
    findings = []
    if not next(iter(records)).startswith(archive.root):
        text = "PyTorch takes the folder of the first record for the root, and it is another one"
        findings.append(Finding("root-folder", "ambiguous", "", text))
    folded = {(archive.root + name).casefold() for name in known}
    for name, record in records.items():
        is_outside = not name.startswith(archive.root)
        if is_outside or not is_known(name[len(archive.root) :]):
            findings.append(_stranger(name, record_head(archive, record), folded))
        if is_outside and is_refused_outside:
            text = "it lies outside of the archive's folder, and PyTorch refuses the whole file"
            findings.append(Finding("outside-root", "ambiguous", name, text))
    return findings


def record_head(archive: Archive, record: Record) -> bytes:
    """Return a record's first bytes, unpacked; nothing if they can't be."""
    head = archive.file.read_at(record.offset, min(record.packed_nbytes, _HEAD_NBYTES))
    if record.method == STORED:
        return head
    if record.method != DEFLATED:
        return b""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _HEAD_NBYTES)
    except zlib.error:
        return b""


def hidden_code(name: str, head: bytes) -> Finding | None:
    """Return what is to be said of a record that nobody asks for if it is code; None if it isn't.

    Args:
        name: the record's name.
        head: its first bytes.
    """
    if is_native(name, head):
        text = "machine code stands where no such archive has any"
        return Finding("hidden-code", "dangerous", name, text)
    if is_source(name) or is_pickle(name, head):
        text = "a record of code or of another pickle is hidden in the archive"
        return Finding("hidden-code", "ambiguous", name, text)
    return None


def _stranger(name: str, head: bytes, folded: set[str]) -> Finding:
    """Return what is to be said of a record that belongs to nothing."""
    if name.casefold() in folded:
        text = "PyTorch, which ignores case, takes it for one of its own records"
        return Finding("case-variant", "ambiguous", name, text)
    text = "PyTorch does not look at this record"
    return hidden_code(name, head) or Finding("extra-record", "note", name, text)
