"""A small writer of 7z archives, for tests: no library of ours or Python's writes them.

Source: 7zFormat.txt of the 7-Zip sources (https://www.7-zip.org/sdk.html, DOC folder).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAGIC = b"7z\xbc\xaf\x27\x1c"

Packer = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Coder:
    """One step of unpacking: its number, its properties, and how to pack for it."""

    method: bytes
    properties: bytes
    pack: Packer


def _raw_lzma(*filters: dict[str, int]) -> Packer:
    return lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=list(filters))


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


DICTIONARY = 1 << 16
LZMA1 = {"id": lzma.FILTER_LZMA1, "dict_size": DICTIONARY}
LZMA2 = {"id": lzma.FILTER_LZMA2, "dict_size": DICTIONARY}
_LZMA = Coder(b"\x03\x01\x01", struct.pack("<BL", 93, DICTIONARY), _raw_lzma(LZMA1))
_LZMA2 = Coder(b"\x21", b"\x08", _raw_lzma(LZMA2))

CHAINS: dict[str, list[Coder]] = {
    "copy": [Coder(b"\0", b"", bytes)],
    "lzma": [_LZMA],
    "lzma2": [_LZMA2],
    "deflate": [Coder(b"\x04\x01\x08", b"", _deflate)],
    "bzip2": [Coder(b"\x04\x02\x02", b"", bz2.compress)],
}
"""What packs a folder, by name. The first coder makes the files' bytes, the last one reads the
packed ones."""


def filter_chain(method: bytes, properties: bytes, spec: dict[str, int], base: str) -> list[Coder]:
    """Return a chain of a filter (delta, BCJ) before `lzma` or `lzma2`."""
    last = LZMA1 if base == "lzma" else LZMA2
    first = Coder(method, properties, lambda data: data)
    packer = CHAINS[base][0]
    return [first, Coder(packer.method, packer.properties, _raw_lzma(spec, last))]


CHAINS["delta+lzma2"] = filter_chain(
    b"\x03", b"\x03", {"id": lzma.FILTER_DELTA, "dist": 4}, "lzma2"
)
CHAINS["delta+lzma"] = filter_chain(b"\x03", b"\x03", {"id": lzma.FILTER_DELTA, "dist": 4}, "lzma")
CHAINS["x86+lzma2"] = filter_chain(b"\x03\x03\x01\x03", b"", {"id": lzma.FILTER_X86}, "lzma2")
CHAINS["x86+lzma"] = filter_chain(b"\x03\x03\x01\x03", b"", {"id": lzma.FILTER_X86}, "lzma")
CHAINS["arm+lzma2"] = filter_chain(b"\x03\x03\x05\x01", b"", {"id": lzma.FILTER_ARM}, "lzma2")


def number(value: int) -> bytes:
    """Return a number as 7z writes it: leading one bits of the first byte count what follows."""
    for extra in range(8):
        if value < 1 << 7 * (extra + 1):
            first = 0xFF00 >> extra & 0xFF | value >> 8 * extra
            return bytes([first]) + (value & (1 << 8 * extra) - 1).to_bytes(extra, "little")
    return b"\xff" + value.to_bytes(8, "little")


def bits(flags: Sequence[bool]) -> bytes:
    """Return flags as a bit field, the first one in the highest bit."""
    text = "".join("01"[flag] for flag in flags).ljust(-(-len(flags) // 8) * 8, "0")
    return int(text or "0", 2).to_bytes(len(text) // 8, "big")


def _coders(chain: list[Coder]) -> bytes:
    parts = [number(len(chain))]
    for coder in reversed(chain):  # as 7-Zip does: what reads the packed bytes comes first
        flags = len(coder.method) | (0x20 if coder.properties else 0)
        parts += [bytes([flags]), coder.method]
        if coder.properties:
            parts += [number(len(coder.properties)), coder.properties]
    # Each coder's input but the first one's is the output of the coder before it.
    parts += [number(index + 1) + number(index) for index in range(len(chain) - 1)]
    return b"".join(parts)


def _streams(
    pack_offset: int, packed: list[bytes], folders: list[list[bytes]], chain: list[Coder]
) -> bytes:
    """Return the description of folders: where they lie, how they unpack, to what files."""
    sizes = [sum(map(len, files)) for files in folders]
    parts = [b"\x06", number(pack_offset), number(len(packed))]
    parts += [b"\x09", *(number(len(data)) for data in packed), b"\x00"]
    parts += [b"\x07\x0b", number(len(folders)), b"\x00", *(_coders(chain) for _ in folders)]
    parts += [b"\x0c", *(number(size) for size in sizes for _ in chain), b"\x00"]
    parts += [b"\x08\x0d", *(number(len(files)) for files in folders)]
    parts += [b"\x09", *(number(len(data)) for files in folders for data in files[:-1])]
    crcs = [zlib.crc32(data) for files in folders for data in files]
    parts += [b"\x0a\x01", struct.pack(f"<{len(crcs)}L", *crcs), b"\x00", b"\x00"]
    return b"".join(parts)


def _property(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + number(len(data)) + data


def _files(files: list[tuple[str, bytes | None]], attributes: dict[str, int] | None) -> bytes:
    """Return the names of the files and which of them have no bytes."""
    parts = [b"\x05", number(len(files))]
    empty = [not data for _, data in files]
    if any(empty):
        parts.append(_property(0x0E, bits(empty)))
        parts.append(_property(0x0F, bits([data is not None for _, data in files if not data])))
    names = b"".join(name.encode("utf-16-le") + b"\0\0" for name, _ in files)
    parts.append(_property(0x11, b"\0" + names))
    if attributes:
        defined = [name in attributes for name, _ in files]
        values = b"".join(struct.pack("<L", attributes[n]) for n, _ in files if n in attributes)
        parts.append(_property(0x15, b"\0" + bits(defined) + b"\0" + values))
    return b"".join([*parts, b"\0"])


def seven_zip(
    files: list[tuple[str, bytes | None]],
    *,
    coders: str | list[Coder] = "lzma",
    solid: bool = False,
    encoded_header: bool = False,
    attributes: dict[str, int] | None = None,
    change_header: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """Return a 7z archive.

    Args:
        files: names and bytes in order; None stands for a folder.
        coders: how to pack them: a key of `CHAINS`, or coders.
        solid: pack all of them as one run of bytes.
        encoded_header: pack the directory at the end as well.
        attributes: Windows attributes by name; the mode of Unix is in the upper half.
        change_header: spoils the plain directory before its checksum is taken.
    """
    chain = CHAINS[coders] if isinstance(coders, str) else coders
    full = [data for _, data in files if data]
    folders = ([full] if full else []) if solid else [[data] for data in full]
    packed = [_pack(b"".join(group), chain) for group in folders]
    header = b"\x01"
    if folders:
        header += b"\x04" + _streams(0, packed, folders, chain)
    header = change_header(header + _files(files, attributes) + b"\x00")
    body = b"".join(packed)
    if encoded_header:
        packed_header = _pack(header, CHAINS["lzma"])
        streams = _streams(len(body), [packed_header], [[header]], CHAINS["lzma"])
        header = b"\x17" + streams
        body += packed_header
    return envelope(body, header)


def envelope(body: bytes, header: bytes, *, tail: bytes = b"") -> bytes:
    """Return an archive of packed bytes and a directory, with the right checksums."""
    start = struct.pack("<QQL", len(body), len(header), zlib.crc32(header))
    return MAGIC + b"\0\4" + struct.pack("<L", zlib.crc32(start)) + start + body + header + tail


def _pack(data: bytes, chain: list[Coder]) -> bytes:
    for coder in chain:
        data = coder.pack(data)
    return data


def _without_end(data: bytes) -> bytes:
    """Pack as 7-Zip does: without the mark at LZMA's end, which Python's library always writes."""
    return _raw_lzma({"id": lzma.FILTER_X86}, LZMA1)(data)[:-5]


CHAINS["x86+lzma without end"] = [
    CHAINS["x86+lzma"][0],
    Coder(_LZMA.method, _LZMA.properties, _without_end),
]
CHAINS["lzma without end"] = [
    Coder(_LZMA.method, _LZMA.properties, lambda data: _raw_lzma(LZMA1)(data)[:-5])
]
