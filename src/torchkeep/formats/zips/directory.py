"""The records of a zip archive, and whether its two views of them agree.

A zip names each record twice: in a header before its bytes, and in the central directory at the
end. Readers differ in which one they believe, so an archive in which the two differ, or in which
a name stands twice, shows different contents to different programs.

Source: PKWARE's APPNOTE 6.3, sections 4.3 (layout), 4.4.4 (flags), 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from torchkeep.contents import Finding
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.zips.structs import (
    CENTRAL,
    CENTRAL_MAGIC,
    DEFLATED,
    END,
    END64,
    END64_LOCATOR,
    END64_LOCATOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    FULL16,
    FULL32,
    LOCAL,
    LOCAL_MAGIC,
    SIZES_FOLLOW,
    STORED,
    UTF8,
    ZIP64,
)
from torchkeep.pickles.limits import Limits, how_to_raise

_LONGEST_COMMENT = 0xFFFF

_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_LINK = 0o12
"""The kind of a file, in the upper bits of its Unix mode."""
_LONGEST_DESCRIPTOR = 24
"""Bytes that may follow a record to repeat its checksum and sizes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One file in the archive."""

    name: str
    offset: int
    """Where its bytes start, from the start of the archive."""
    nbytes: int
    """Its size, unpacked."""
    packed_nbytes: int
    """The bytes that it takes in the archive."""
    method: int
    """0 for stored, 8 for deflated."""
    crc32: int
    is_link: bool = False
    """Whether `unzip` makes a link of it; Python's zipfile makes a file."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The records of an archive in the directory's order, and what is odd about them."""

    records: dict[str, Record]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the central directory, before its local header was seen."""

    name: bytes
    flags: int
    method: int
    crc32: int
    packed_nbytes: int
    nbytes: int
    header_offset: int
    is_link: bool


def read_directory(file: Readable, limits: Limits) -> Directory:
    """Return the archive's records.

    Raises:
        DamagedFile: there is no directory (the file is truncated), or it contradicts itself.
        LimitReached: it has more records than `limits` allows.
    """
    findings: list[Finding] = []
    offset, nbytes, count = _find_directory(file, findings)
    limits.check("header_nbytes", nbytes)
    limits.check("records", count)
    entries = _read_entries(file.read_at(offset, nbytes), count)
    records: dict[str, Record] = {}
    ranges: list[tuple[int, int, str]] = []
    folded: set[str] = set()
    for entry in entries:
        record = _locate(file, entry, findings)
        if record.name.casefold() in folded:
            text = "two records have this name, or one that differs in case only"
            findings.append(_ambiguous("duplicate-record", record.name, text))
        folded.add(record.name.casefold())
        records[record.name] = record
        ranges.append((entry.header_offset, record.offset + record.packed_nbytes, record.name))
    _check_ranges(ranges, offset, findings)
    return Directory(records, tuple(findings))


def read_record(file: Readable, record: Record, limits: Limits) -> bytes:
    """Return a record's bytes, unpacked and checked against its CRC.

    Raises:
        DamagedFile: the bytes are not what the directory promises.
        LimitReached: they are more than a pickle may have.
        UnsupportedContent: they are packed in an unusual way.
    """
    limits.check("pickle_nbytes", max(record.nbytes, record.packed_nbytes))
    data = file.read_at(record.offset, record.packed_nbytes)
    if record.method == DEFLATED:
        data = _inflate(data, record, limits)
    elif record.method != STORED:
        raise UnsupportedContent(f"record {record.name!r} is packed with method {record.method}")
    if len(data) != record.nbytes:
        raise DamagedFile(f"record {record.name!r} has {len(data)} bytes, not {record.nbytes}")
    # PyTorch can be told to leave the checksums out; it writes 0 then.
    if record.crc32 and zlib.crc32(data) != record.crc32:
        raise DamagedFile(
            f"record {record.name!r} does not match its checksum",
            advice="The file is damaged: copy or download it again.",
        )
    return data


_FREE_NBYTES = 1 << 20


def _inflate(data: bytes, record: Record, limits: Limits) -> bytes:
    if record.nbytes > _FREE_NBYTES + limits.expansion * len(data):
        raise LimitReached(
            f"record {record.name!r} unpacks from {len(data)} to {record.nbytes} bytes, more than "
            f"the limit expansion={limits.expansion} times",
            advice=how_to_raise("expansion"),
        )
    try:
        # One byte more than promised tells a bomb from an honest record.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.nbytes + 1)
    except zlib.error as error:
        raise DamagedFile(f"record {record.name!r} can't be unpacked ({error})") from None


def _read_tail(file: Readable) -> bytes:
    """Return the file's end with the archive's end record in it, if it has one."""
    tail = file.read_at(max(file.nbytes - END.size, 0), min(file.nbytes, END.size))
    if tail.startswith(END_MAGIC) and tail.endswith(b"\0\0"):
        return tail  # as nearly always: there is no comment behind it
    nbytes = min(file.nbytes, END.size + _LONGEST_COMMENT)
    return file.read_at(file.nbytes - nbytes, nbytes)


def _find_directory(file: Readable, findings: list[Finding]) -> tuple[int, int, int]:
    """Return offset, size and number of entries of the central directory."""
    tail = _read_tail(file)
    tail_offset = file.nbytes - len(tail)
    found = tail.rfind(END_MAGIC)
    if found < 0 or len(tail) - found < END.size:
        raise DamagedFile(
            "the archive is truncated: its directory, which stands at the end, is missing",
            advice="Copy or download the file again.",
        )
    end_offset = tail_offset + found
    _, _, _, _, count, nbytes, offset, comment_nbytes = END.unpack_from(tail, found)
    if found + END.size + comment_nbytes != len(tail):
        findings.append(_ambiguous("trailing-bytes", "", "there are bytes behind the archive"))
    if count == FULL16 or FULL32 in (nbytes, offset) or _has_locator(file, end_offset):
        wide = _read_end64(file, end_offset)
        narrow = ((count, FULL16), (nbytes, FULL32), (offset, FULL32))
        if any(short not in (full, long) for (short, full), long in zip(narrow, wide, strict=True)):
            text = "the archive has two directories, of 32 and of 64 bits, that differ"
            findings.append(_ambiguous("two-directories", "", text))
        count, nbytes, offset = wide
        end_offset -= END64_LOCATOR.size + END64.size
    if offset + nbytes > end_offset:
        raise DamagedFile("the archive's directory lies outside of the file")
    if offset + nbytes < end_offset:
        raise _displaced(file, end_offset - nbytes - offset)
    return offset, nbytes, count


def _displaced(file: Readable, nbytes: int) -> FileProblem:
    """Return the error for a directory that counts from another byte than the file's first."""
    if nbytes >= LOCAL.size and file.read_at(nbytes, len(LOCAL_MAGIC)) == LOCAL_MAGIC:
        return UnsupportedContent(
            "several archives stand end to end, as in a part of a distributed checkpoint",
            advice="Such a part makes sense only with its folder and the folder's .metadata.",
        )
    return DamagedFile(
        f"the archive's directory ends {nbytes} bytes too early",
        advice="Copy or download the file again.",
    )


def _has_locator(file: Readable, end_offset: int) -> bool:
    start = end_offset - END64_LOCATOR.size
    return start >= 0 and file.read_at(start, 4) == END64_LOCATOR_MAGIC


def _read_end64(file: Readable, end_offset: int) -> tuple[int, int, int]:
    locator_offset = end_offset - END64_LOCATOR.size
    if not _has_locator(file, end_offset):
        raise DamagedFile("the archive says zip64 and has no zip64 directory")
    end64_offset = END64_LOCATOR.unpack(file.read_at(locator_offset, END64_LOCATOR.size))[2]
    expected = locator_offset - END64.size
    if 0 <= end64_offset < expected and file.read_at(expected, 4) == END64_MAGIC:
        raise _displaced(file, expected - end64_offset)
    if end64_offset + END64.size > locator_offset:
        raise DamagedFile("the archive's zip64 directory lies outside of the file")
    fields = END64.unpack(file.read_at(end64_offset, END64.size))
    if fields[0] != END64_MAGIC:
        raise DamagedFile("the archive's zip64 directory is not where it should be")
    _, _, _, _, _, _, _, count, nbytes, offset = fields
    return count, nbytes, offset


def _read_entries(data: bytes, count: int) -> list[_Entry]:
    entries = []
    position = 0
    for _ in range(count):
        if len(data) - position < CENTRAL.size:
            raise DamagedFile(f"the archive's directory has fewer than its {count} entries")
        fields = CENTRAL.unpack_from(data, position)
        if fields[0] != CENTRAL_MAGIC:
            raise DamagedFile("the archive's directory is overwritten")
        flags, method, crc32 = fields[3], fields[4], fields[7]
        name_nbytes, extra_nbytes, comment_nbytes = fields[10], fields[11], fields[12]
        name_end = position + CENTRAL.size + name_nbytes
        extra = data[name_end : name_end + extra_nbytes]
        packed, nbytes, offset = _widen(extra, fields[8], fields[9], fields[16])
        name = data[name_end - name_nbytes : name_end]
        is_link = fields[15] >> 28 == _LINK
        entries.append(_Entry(name, flags, method, crc32, packed, nbytes, offset, is_link))
        position = name_end + extra_nbytes + comment_nbytes
    if position != len(data):
        raise DamagedFile(f"the archive's directory does not end after its {count} entries")
    return entries


def _widen(extra: bytes, packed: int, nbytes: int, offset: int) -> tuple[int, int, int]:
    """Return the sizes and the offset, taken from the zip64 field where the short ones are full."""
    full = FULL32
    if full not in (packed, nbytes, offset):
        return packed, nbytes, offset
    position = 0
    while position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        if tag == ZIP64:
            field = extra[position + 4 : position + 4 + size]
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            try:
                nbytes = next(wide) if nbytes == full else nbytes
                packed = next(wide) if packed == full else packed
                offset = next(wide) if offset == full else offset
            except StopIteration:
                break
            return packed, nbytes, offset
        position += 4 + size
    raise DamagedFile("the archive's directory has a record without its zip64 sizes")


def _locate(file: Readable, entry: _Entry, findings: list[Finding]) -> Record:
    """Return the record of a directory entry, after a look at its local header."""
    name = entry.name.decode("utf-8" if entry.flags & UTF8 else "cp437", "replace")
    header = file.read_at(entry.header_offset, LOCAL.size + len(entry.name))
    local = LOCAL.unpack_from(header)
    if local[0] != LOCAL_MAGIC:
        raise DamagedFile(f"record {name!r} is not where the archive's directory says")
    local_name = header[LOCAL.size :] if local[9] == len(entry.name) else None
    offset = entry.header_offset + LOCAL.size + local[9] + local[10]
    if "\0" in name:  # Python's zipfile ends the name there, others do not
        findings.append(_ambiguous("record-name", name, "the name has a zero byte in it"))
    if (entry.flags | local[2]) & _ENCRYPTED:
        findings.append(_ambiguous("encrypted-flag", name, "the record is marked as encrypted"))
    # Sizes of 0 in a local header mean that they follow the data; PyTorch writes both kinds.
    differs = {
        "name": local_name != entry.name,
        "method": local[3] != entry.method,
        "size": local[8] not in (0, FULL32, entry.nbytes),
        "packed size": local[7] not in (0, FULL32, entry.packed_nbytes),
        "checksum": local[6] not in (0, entry.crc32) and not local[2] & SIZES_FOLLOW,
    }
    for what in (key for key, value in differs.items() if value):
        findings.append(
            _ambiguous("header-mismatch", name, f"its {what} differs in header and directory")
        )
    if entry.method == STORED and entry.packed_nbytes != entry.nbytes:
        findings.append(_ambiguous("header-mismatch", name, "it is stored with two sizes"))
    if offset + entry.packed_nbytes > file.nbytes:
        raise DamagedFile(
            f"the archive is truncated: record {name!r} ends behind the end of the file",
            advice="Copy or download the file again.",
        )
    return Record(
        name, offset, entry.nbytes, entry.packed_nbytes, entry.method, entry.crc32, entry.is_link
    )


def _check_ranges(
    ranges: list[tuple[int, int, str]], directory_offset: int, findings: list[Finding]
) -> None:
    """Refuse records that share bytes, and note bytes that belong to none."""
    end, last, room = 0, "", 0
    for start, stop, name in sorted(ranges):
        if start < end:
            raise DamagedFile(f"the archive's records {last!r} and {name!r} overlap")
        if start > end + room:
            findings.append(_ambiguous("hidden-bytes", name, "bytes before it belong to no record"))
        end, last, room = stop, name, _LONGEST_DESCRIPTOR
    if end > directory_offset:
        raise DamagedFile(f"the archive's record {last!r} reaches into the directory")
    if directory_offset > end + room:
        text = "bytes before the directory belong to no record"
        findings.append(_ambiguous("hidden-bytes", "", text))


def _ambiguous(rule: str, place: str, text: str) -> Finding:
    return Finding(rule, "ambiguous", place, text)
