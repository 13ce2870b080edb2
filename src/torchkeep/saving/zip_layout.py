"""The frame of a torch zip: stored records at known places, with real checksums.

Layout of one record: a local header, the root folder and name, a zip64 field if it takes 4 GiB or
more, a padding field (`FB`, u16 length, `Z`s) that brings the payload to a multiple of 64 bytes,
the payload. The central directory and its end follow the last one. Sizes and checksums stand in
the local header, so no data descriptors follow; PyTorch reads either.

Sources: PKWARE's APPNOTE.TXT 6.3.10; caffe2/serialize/inline_container.cc for the padding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ROOT = "archive/"
"""The root folder. PyTorch accepts any; a fixed one keeps the bytes free of the file's name."""

ALIGNMENT = 64
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_UTF8, _STORED, _TIME, _DATE = 0x800, 0, 0, 0x21  # 1 January 1980: the zip epoch
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Record:
    """A record and its place in the archive, in bytes."""

    name: str
    """Its name below the root folder."""
    nbytes: int
    """The payload's size."""
    header_offset: int
    """Where its local header starts."""
    offset: int
    """Where its payload starts."""

    @property
    def end(self) -> int:
        """Where the next record may start."""
        return self.offset + self.nbytes


def lay_out(sizes: Iterable[tuple[str, int]]) -> list[Record]:
    """Place records, given as (name, nbytes), one after the other."""
    records, position = [], 0
    for name, nbytes in sizes:
        start = position + _LOCAL.size + len(_encoded(name)) + len(_zip64(nbytes, nbytes)) + 4
        offset = start + -start % ALIGNMENT
        records.append(Record(name, nbytes, position, offset))
        position = offset + nbytes
    return records


def local_header(record: Record, crc32: int) -> bytes:
    """Return the bytes from the record's header to its payload."""
    name, extra = _encoded(record.name), _zip64(record.nbytes, record.nbytes)
    used = _LOCAL.size + len(name) + len(extra) + 4
    padding = record.offset - record.header_offset - used
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    size = min(record.nbytes, _MAX32)
    fields = (_version(extra), _UTF8, _STORED, _TIME, _DATE, crc32, size, size)
    return _LOCAL.pack(b"PK\x03\x04", *fields, len(name), len(extra)) + name + extra


def central_directory(records: list[Record], crc32s: Mapping[str, int]) -> bytes:
    """Return what follows the last record: the central directory and its end."""
    entries = b"".join(_central_header(record, crc32s[record.name]) for record in records)
    start = records[-1].end
    count = len(records)
    tail = b""
    if count >= _MAX16 or start >= _MAX32 or len(entries) >= _MAX32:
        body = (_END64.size - 12, 45, 45, 0, 0, count, count, len(entries), start)
        tail = _END64.pack(b"PK\x06\x06", *body)
        tail += _LOCATOR.pack(b"PK\x06\x07", 0, start + len(entries), 1)
    count16 = min(count, _MAX16)
    sizes = (min(len(entries), _MAX32), min(start, _MAX32))
    return entries + tail + _END.pack(b"PK\x05\x06", 0, 0, count16, count16, *sizes, 0)


def _central_header(record: Record, crc32: int) -> bytes:
    name = _encoded(record.name)
    extra = _zip64(record.nbytes, record.nbytes, record.header_offset)
    size = min(record.nbytes, _MAX32)
    version = _version(extra)
    fields = (version, version, _UTF8, _STORED, _TIME, _DATE, crc32, size, size)
    places = (len(name), len(extra), 0, 0, 0, 0, min(record.header_offset, _MAX32))
    return _CENTRAL.pack(b"PK\x01\x02", *fields, *places) + name + extra


def _encoded(name: str) -> bytes:
    return (ROOT + name).encode()


def _zip64(*values: int) -> bytes:
    """Return the extra field for the values that don't fit into 32 bits, in their fixed order."""
    large = [value for value in values if value >= _MAX32]
    return struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""


def _version(extra: bytes) -> int:
    return 45 if extra.startswith(b"\x01\x00") else 20
