"""The files of a tar archive, as Python's tarfile sees them, and where other programs see others.

Layout: blocks of 512 bytes. A header (name, size, type, a sum of its own bytes) is followed by the
file's bytes, filled up with zeros to a whole block. Two blocks of zeros are the end. What is too
long for a header stands in a file of its own before it: GNU's types `L` (name) and `K` (link),
POSIX's `x` (a table for the next file) and `g` (a table for all that follow).

PyTorch opens its oldest files with tarfile, so that is the view that counts. It asks for no
`ustar` mark, only for the right sum.

Limits: sparse files are named and not read.

Source: POSIX.1-2017 `pax`, the GNU tar manual ("Tar Internals"), Lib/tarfile.py of CPython.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torchkeep.contents import Finding
from torchkeep.errors import DamagedFile
from torchkeep.files import Stream
from torchkeep.pickles.limits import Limits

BLOCK_NBYTES = 512
_LONGEST_TABLE = 1 << 20
"""Bytes of a long name, or of a table of POSIX's. A name of 4096 bytes is long."""


class TarStream(Stream, Protocol):
    """A stream that knows where it is and can go on later."""

    @property
    def position(self) -> int:
        """The offset of the next byte."""
        ...

    def skip_to(self, position: int) -> None:
        """Go on at a later offset; `DamagedFile` if it lies behind the end."""
        ...


Kind = Literal["file", "folder", "link", "device", "sparse"]


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One file, folder or other thing in the archive."""

    name: str
    kind: Kind
    offset: int
    """Where its bytes start, from the start of the stream."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Header:
    """A header block as it stands."""

    name: str
    nbytes: int
    type: bytes
    prefix: str
    is_posix: bool
    is_extended: bool
    """Whether more blocks of the header follow, which only those of sparse files may have."""


def is_tar_header(block: bytes) -> bool:
    """Whether a file's first block is a tar header, as tarfile and PyTorch see it."""
    return _parse_header(block[:BLOCK_NBYTES]) is not None


def first_name(block: bytes) -> str | None:
    """Return the name in a file's first block, or None if that is no tar header."""
    header = _parse_header(block[:BLOCK_NBYTES])
    return None if header is None else header.name


def _parse_header(block: bytes) -> _Header | None:
    """Return what a header says; None if its sum is wrong."""
    if len(block) < BLOCK_NBYTES:
        return None
    rest = block[:148] + b" " * 8 + block[156:]
    signed = sum(struct.unpack("512b", rest))  # some old programs took the bytes for signed
    try:
        if _number(block[148:156]) not in (sum(rest), signed):
            return None
        nbytes, *_ = [_number(block[start:stop]) for start, stop in _NUMBERS]
    except ValueError:
        return None
    kind = block[156:157]
    return _Header(
        name=_text(block[:100]),
        nbytes=nbytes,
        type=kind,
        prefix="" if kind == b"S" else _text(block[345:500]),
        is_posix=block[257:263] == b"ustar\0",
        is_extended=block[156:157] == b"S" and block[482] != 0,
    )


_NUMBERS = (
    (124, 136),  # size
    (100, 108),  # mode
    (108, 116),  # user
    (116, 124),  # group
    (136, 148),  # time
    (329, 337),  # device
    (337, 345),
)
"""Where numbers stand; tarfile takes no header in which one of them is none."""


def _number(field: bytes) -> int:
    """Return a number of a header: octal text, or GNU's binary form."""
    if field[0] in (0o200, 0o377):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] > 128 else 0)
    text = field.partition(b"\0")[0].decode("ascii").strip()
    return int(text or "0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


class TarReader:
    """Goes through an archive, header by header.

    Attributes:
        findings: what was odd so far.
    """

    def __init__(self, stream: TarStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._table: dict[str, str] = {}
        self._names: set[str] = set()
        self.findings: list[Finding] = []

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield the entries. Between two of them, the entry's bytes may be read off the stream.

        Raises:
            DamagedFile: the archive is truncated, or has a broken header.
            LimitReached: it has more entries than `limits` allows.
        """
        num_entries = 0
        while (header := self._next_header({})) is not None:
            num_entries += 1
            self._limits.check("records", num_entries)
            entry, end = header
            yield entry
            self._stream.skip_to(end)

    def _next_header(self, table: dict[str, str]) -> tuple[TarEntry, int] | None:
        """Return the next entry and where the one after it starts; None at the archive's end."""
        num_headers = 0
        while True:
            num_headers += 1
            self._limits.check("records", num_headers)
            start = self._stream.position
            block = self._stream.read(BLOCK_NBYTES)
            if block == bytes(BLOCK_NBYTES) and num_headers == 1:
                self._check_end()
                return None
            header = _parse_header(block)
            if header is None or header.nbytes < 0:
                raise self._broken(start, len(block))
            if header.type not in _TABLES:
                return self._entry(header, table)
            data = self._read_table(header)
            if header.type == b"L":
                table["GNU.name"] = _text(data)
            elif header.type == b"g":
                self._table.update(_parse_table(data, start))
            elif header.type != b"K":
                table.update(_parse_table(data, start))

    def _broken(self, start: int, nbytes: int) -> DamagedFile:
        if nbytes < BLOCK_NBYTES:
            text = "the archive is truncated: it ends without the two blocks of zeros"
        else:
            text = f"the archive has no header at byte {start}, where one belongs"
        return DamagedFile(text, advice="Copy or download the file again.")

    def _read_table(self, header: _Header) -> bytes:
        if header.nbytes > _LONGEST_TABLE:
            raise DamagedFile(f"the archive has a name of {header.nbytes} bytes")
        padded = _padded(header.nbytes)
        data = self._stream.read(padded)
        if len(data) < padded:
            raise self._broken(self._stream.position, 0)
        if any(data[header.nbytes :]):  # where some readers look for more of the table
            raise DamagedFile("the archive has something where a table's last block is padded")
        return data[: header.nbytes]

    def _entry(self, header: _Header, table: dict[str, str]) -> tuple[TarEntry, int]:
        facts = {**self._table, **table}
        name = f"{header.prefix}/{header.name}" if header.prefix else header.name
        kind = _KINDS.get(header.type, "file")
        if header.type == b"\0" and header.name.endswith("/"):
            kind = "folder"
        name = table.get("GNU.name", name)
        if "path" in facts or kind == "folder":
            name = facts.get("path", name).rstrip("/")
        nbytes = self._size(header, facts, name)
        if any(key.startswith("GNU.sparse") for key in facts):
            kind = "sparse"
        self._step_over_extension(header)
        entry = TarEntry(name, kind, self._stream.position, nbytes)
        has_bytes = kind in ("file", "sparse")
        self._note(header, entry, has_bytes=has_bytes)
        end = entry.offset + (_padded(nbytes) if has_bytes else 0)
        return entry if has_bytes else replace(entry, nbytes=0), end

    def _step_over_extension(self, header: _Header) -> None:
        is_extended = header.is_extended
        while is_extended:
            block = self._stream.read(BLOCK_NBYTES)
            if len(block) < BLOCK_NBYTES:
                raise self._broken(self._stream.position, 0)
            is_extended = block[504] != 0

    def _size(self, header: _Header, facts: dict[str, str], name: str) -> int:
        if "size" not in facts:
            return header.nbytes
        if not facts["size"].isdecimal() or len(facts["size"]) > 18:
            raise DamagedFile(f"file {name!r} of the archive has the size {facts['size'][:20]!r}")
        nbytes = int(facts["size"])
        if header.nbytes not in (0, nbytes):
            self._ambiguous("header-mismatch", name, "it has two sizes, in header and table")
        return nbytes

    def _note(self, header: _Header, entry: TarEntry, *, has_bytes: bool) -> None:
        if entry.kind == "file" and header.type not in _KINDS:
            text = f"it is of the unknown type {header.type!r}, which programs take for different"
            self._ambiguous("header-mismatch", entry.name, f"{text} things")
        if not has_bytes and entry.nbytes:
            text = f"it is a {entry.kind} of {entry.nbytes} bytes, which some programs step over"
            self._ambiguous("header-mismatch", entry.name, text)
        if header.prefix and not header.is_posix:
            text = "its name has two parts, and only some programs join them"
            self._ambiguous("header-mismatch", entry.name, text)
        if entry.kind != "folder":
            if entry.name in self._names:
                self._ambiguous("duplicate-record", entry.name, "two files have this name")
            self._names.add(entry.name)

    def _check_end(self) -> None:
        """Look behind the first block of zeros: another one, and nothing else."""
        block = self._stream.read(BLOCK_NBYTES)
        if len(block) < BLOCK_NBYTES:
            raise self._broken(self._stream.position, 0)
        more = self._stream.read(_LONGEST_PADDING)
        if block.strip(b"\0") or more.strip(b"\0") or len(more) == _LONGEST_PADDING:
            self._ambiguous("trailing-bytes", "", "there are bytes behind the end of the archive")
        if len(more) % BLOCK_NBYTES:
            raise self._broken(self._stream.position, 0)

    def _ambiguous(self, rule: str, place: str, text: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(rule, "ambiguous", place, text))


_TABLES = (b"L", b"K", b"x", b"X", b"g")
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "sparse",
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"6": "device",
    b"5": "folder",
}
_LONGEST_PADDING = 1 << 18
"""Zeros at the end: programs fill up to 10 KiB, tapes to more."""
_MOST_FINDINGS = 100


def _padded(nbytes: int) -> int:
    return -(-nbytes // BLOCK_NBYTES) * BLOCK_NBYTES


def _parse_table(data: bytes, start: int) -> dict[str, str]:
    """Return POSIX's table: lines of length, key and value.

    Raises:
        DamagedFile: it is none.
    """
    table: dict[str, str] = {}
    position = 0
    while position < len(data) and data[position]:
        length, space, _ = data[position : position + 20].partition(b" ")
        stop = position + (int(length) if length.isdigit() else 0)
        line = data[position + len(length) + 1 : stop]
        key, equals, value = line[:-1].partition(b"=")
        if not (space and equals and line.endswith(b"\n")) or stop > len(data):
            raise DamagedFile(f"the archive's table at byte {start} is broken")
        table[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        position = stop
    return table
