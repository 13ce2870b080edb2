"""The frame of a torch zip: stored records at known places, with real checksums.

Layout of one record: a local header, the root folder and name, a zip64 field if it takes 4 GiB or
more, a padding field (`FB`, u16 length, `Z`s) that brings the payload to a multiple of 64 bytes,
the payload. The central directory and its end follow the last one. Sizes and checksums stand in
the local header, so no data descriptors follow; PyTorch reads either.

Sources: formats/zips/structs.py; caffe2/serialize/inline_container.cc for the padding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torchkeep.formats.zips.structs import (
    CENTRAL,
    CENTRAL_MAGIC,
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
    STORED,
    UTF8,
    ZIP64,
)

ROOT = "archive/"
"""The root folder. PyTorch accepts any; a fixed one keeps the bytes free of the file's name."""

ALIGNMENT = 64
_TIME, _DATE = 0, 0x21  # 1 January 1980: the zip epoch


@dataclass(frozen=True, slots=True)
class RecordPlace:
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


def lay_out(sizes: Iterable[tuple[str, int]]) -> list[RecordPlace]:
    """Place records, given as (name, nbytes), one after the other."""
    records, position = [], 0
    for name, nbytes in sizes:
        start = position + LOCAL.size + len(_encoded(name)) + len(_zip64(nbytes, nbytes)) + 4
        offset = start + -start % ALIGNMENT
        records.append(RecordPlace(name, nbytes, position, offset))
        position = offset + nbytes
    return records


def local_header(record: RecordPlace, crc32: int) -> bytes:
    """Return the bytes from the record's header to its payload."""
    name, extra = _encoded(record.name), _zip64(record.nbytes, record.nbytes)
    used = LOCAL.size + len(name) + len(extra) + 4
    padding = record.offset - record.header_offset - used
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    size = min(record.nbytes, FULL32)
    fields = (_version(extra), UTF8, STORED, _TIME, _DATE, crc32, size, size)
    return LOCAL.pack(LOCAL_MAGIC, *fields, len(name), len(extra)) + name + extra


def central_directory(records: list[RecordPlace], crc32s: Mapping[str, int]) -> bytes:
    """Return what follows the last record: the central directory and its end."""
    entries = b"".join(_central_header(record, crc32s[record.name]) for record in records)
    start = records[-1].end
    count = len(records)
    tail = b""
    if count >= FULL16 or start >= FULL32 or len(entries) >= FULL32:
        body = (END64.size - 12, 45, 45, 0, 0, count, count, len(entries), start)
        tail = END64.pack(END64_MAGIC, *body)
        tail += END64_LOCATOR.pack(END64_LOCATOR_MAGIC, 0, start + len(entries), 1)
    count16 = min(count, FULL16)
    sizes = (min(len(entries), FULL32), min(start, FULL32))
    return entries + tail + END.pack(END_MAGIC, 0, 0, count16, count16, *sizes, 0)


def _central_header(record: RecordPlace, crc32: int) -> bytes:
    name = _encoded(record.name)
    extra = _zip64(record.nbytes, record.nbytes, record.header_offset)
    size = min(record.nbytes, FULL32)
    version = _version(extra)
    fields = (version, version, UTF8, STORED, _TIME, _DATE, crc32, size, size)
    places = (len(name), len(extra), 0, 0, 0, 0, min(record.header_offset, FULL32))
    return CENTRAL.pack(CENTRAL_MAGIC, *fields, *places) + name + extra


def _encoded(name: str) -> bytes:
    return (ROOT + name).encode()


def _zip64(*values: int) -> bytes:
    """Return the extra field for the values that don't fit into 32 bits, in their fixed order."""
    large = [value for value in values if value >= FULL32]
    return struct.pack(f"<2H{len(large)}Q", ZIP64, 8 * len(large), *large) if large else b""


def _version(extra: bytes) -> int:
    return 45 if extra.startswith(b"\x01\x00") else 20
