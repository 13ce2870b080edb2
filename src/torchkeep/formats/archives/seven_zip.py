"""The files of a 7z archive.

Layout: 32 bytes (`7z BC AF 27 1C`, the version, and where the directory lies, with its checksum),
the packed bytes, the directory. A directory may be packed itself: it then says where its packed
form lies. Files lie one after another in *folders*, each of which is packed as one run of bytes by
a chain of coders. Numbers have a length of their own: the leading one bits of the first byte count
the bytes that follow.

Limits: the coders that the standard library has: Copy, LZMA, LZMA2, Deflate, BZip2, and Delta and
the BCJ filters before LZMA or LZMA2. Folders of others (AES, PPMd, BCJ2, Zstandard) are named and
not read. An archive in several volumes is not read.

Source: `DOC/7zFormat.txt` and `DOC/Methods.txt` of the LZMA SDK (https://www.7-zip.org/sdk.html).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from torchkeep.contents import Finding
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Readable, Stream
from torchkeep.formats.archives.seven_zip_coders import COPY, Coder, open_chain
from torchkeep.formats.archives.unpacking import Budget, PartStream
from torchkeep.pickles.limits import Limits

MAGIC = b"7z\xbc\xaf\x27\x1c"
_START = struct.Struct("<6sBBLQQL")

_HEADER, _ARCHIVE_PROPERTIES, _ADDITIONAL_STREAMS, _MAIN_STREAMS, _FILES = 0x01, 0x02, 0x03, 4, 5
_PACK_INFO, _CODERS_INFO, _SUBSTREAMS_INFO, _SIZES, _CRCS, _FOLDERS = 6, 7, 8, 9, 0x0A, 0x0B
_UNPACKED_SIZES, _NUM_SUBSTREAMS, _NO_STREAM, _NAMES = 0x0C, 0x0D, 0x0E, 0x11
_ATTRIBUTES, _PACKED_HEADER, _END = 0x15, 0x17, 0

_MOST_CODERS = 32
"""In a folder, and streams of one; 7-Zip allows as many."""
_MOST_LAYERS = 4
"""Of directories that are packed in packed directories; 7-Zip writes one."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A run of bytes that is packed as one."""

    offset: int
    packed_nbytes: int
    coders: tuple[Coder, ...]
    """In the order of unpacking; empty if they are no plain chain."""
    nbytes: int
    crc32: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One file."""

    name: str
    nbytes: int
    crc32: int | None
    folder: int | None
    """The index of its folder; the files of one lie in it in order. None if it has no bytes."""
    is_link: bool


@dataclass(frozen=True, slots=True)
class Directory:
    """The files of an archive in order, how they are packed, and what is odd about them."""

    entries: tuple[Entry, ...]
    folders: tuple[Folder, ...]
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class _Streams:
    """What a directory says of packed bytes."""

    folders: list[Folder] = field(default_factory=list)
    files: list[list[tuple[int, int | None]]] = field(default_factory=list)
    """Size and checksum of each file of each folder."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of each packed stream."""


def read_directory(file: Readable, limits: Limits, budget: Budget) -> Directory:
    """Return what the archive holds.

    Raises:
        DamagedFile: it is truncated, or contradicts itself.
        LimitReached: its directory is larger than allowed.
        UnsupportedContent: its directory is encrypted, or packed in an unknown way.
    """
    offset, nbytes, crc32 = _read_start(file)
    findings: list[Finding] = []
    if offset + nbytes < file.nbytes:
        text = "there are bytes behind the archive"
        findings.append(Finding("trailing-bytes", "ambiguous", "", text))
    limits.check("header_nbytes", nbytes)
    data = file.read_at(offset, nbytes)
    ranges: list[tuple[int, int]] = [(offset, offset + nbytes)]
    for _ in range(_MOST_LAYERS):
        if zlib.crc32(data) != crc32:
            raise DamagedFile(
                "the archive's directory does not match its checksum",
                advice="Copy or download the file again.",
            )
        header = _Header(data, offset)
        kind = header.byte() if data else _HEADER
        if kind == _HEADER:
            return _read_files(header, limits, budget, findings, ranges)
        if kind != _PACKED_HEADER:
            raise DamagedFile("the archive's directory starts with an unknown mark")
        streams = header.streams()
        ranges += streams.ranges
        data, crc32 = _unpack_directory(file, streams, limits, budget)
    raise DamagedFile("the archive's directory is packed in too many layers")


def open_folder(file: Readable, folder: Folder, budget: Budget) -> Stream:
    """Return a folder's bytes, unpacked.

    Raises:
        UnsupportedContent: it is packed in a way that can't be read here.
        DamagedFile: the coders' settings make no sense.
    """
    if not folder.coders:
        raise UnsupportedContent("it is packed by coders that are not a plain chain, as BCJ2 is")
    packed = PartStream(file, folder.offset, folder.packed_nbytes)
    return open_chain(packed, folder.coders, budget)


def is_stored(folder: Folder) -> bool:
    """Whether a folder's bytes lie in the archive as they are."""
    return (
        bool(folder.coders)
        and all(coder.method == COPY for coder in folder.coders)
        and folder.packed_nbytes == folder.nbytes
    )


def _read_start(file: Readable) -> tuple[int, int, int]:
    """Return where the directory lies, its size and its checksum."""
    fields = _START.unpack(file.read_at(0, _START.size))
    magic, _, _, crc32, distance, nbytes, header_crc32 = fields
    if magic != MAGIC or zlib.crc32(file.read_at(12, _START.size - 12)) != crc32:
        raise DamagedFile(
            "the archive's first bytes do not match their checksum",
            advice="Copy or download the file again.",
        )
    offset = _START.size + distance
    if offset + nbytes > file.nbytes:
        raise DamagedFile(
            f"the archive is truncated: it should have {offset + nbytes} bytes, "
            f"and has {file.nbytes}",
            advice="Copy or download the file again.",
        )
    return offset, nbytes, header_crc32


def _unpack_directory(
    file: Readable, streams: _Streams, limits: Limits, budget: Budget
) -> tuple[bytes, int]:
    if len(streams.folders) != 1:
        raise DamagedFile(f"the archive's directory is packed in {len(streams.folders)} folders")
    folder = streams.folders[0]
    limits.check("header_nbytes", folder.nbytes)
    budget.look(folder.nbytes)
    try:
        data = open_folder(file, folder, budget).read(folder.nbytes)
    except UnsupportedContent as problem:
        raise UnsupportedContent(
            f"the archive's directory can't be read: {problem.problem}",
            advice="Ask whoever gave it to you for the files in it.",
        ) from None
    crc32 = folder.crc32
    if streams.files[0] and crc32 is None:
        crc32 = streams.files[0][0][1]
    return data, zlib.crc32(data) if crc32 is None else crc32


# --- The directory -------------------------------------------------------------------------------


class _Header:
    """The bytes of a directory, read forward. Nothing is believed that they have no room for."""

    def __init__(self, data: bytes, end: int) -> None:
        self._data = data
        self._next = 0
        self.end = end
        """Where the archive's directory starts: the packed bytes lie before it."""

    @property
    def remaining(self) -> int:
        return len(self._data) - self._next

    def take(self, nbytes: int) -> bytes:
        if nbytes > self.remaining:
            raise DamagedFile("the archive's directory ends too early")
        self._next += nbytes
        return self._data[self._next - nbytes : self._next]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        first, mask, value = self.byte(), 0x80, 0
        for index in range(8):
            if not first & mask:
                return value | (first & mask - 1) << 8 * index
            value |= self.byte() << 8 * index
            mask >>= 1
        return value

    def count(self, most: int | None = None) -> int:
        """Return a number of things that take a byte each at least."""
        value = self.number()
        if value > (self.remaining + 1 if most is None else most):
            raise DamagedFile(f"the archive's directory promises {value} entries and ends before")
        return value

    def flags(self, count: int) -> list[bool]:
        data = self.take(-(-count // 8))
        return [bool(data[index // 8] & 0x80 >> index % 8) for index in range(count)]

    def all_or_flags(self, count: int) -> list[bool]:
        return [True] * count if self.byte() else self.flags(count)

    def crcs(self, count: int) -> list[int | None]:
        defined = self.all_or_flags(count)
        return [int.from_bytes(self.take(4), "little") if known else None for known in defined]

    def expect(self, kind: int) -> None:
        found = self.byte()
        if found != kind:
            raise DamagedFile(f"the archive's directory has mark {found:#x}, not {kind:#x}")

    def not_elsewhere(self) -> None:
        if self.byte():
            raise UnsupportedContent("a part of the archive's directory lies outside of it")

    def streams(self) -> _Streams:
        """Read where packed bytes lie, how they unpack, and into what files."""
        streams = _Streams()
        kind = self.byte()
        if kind == _PACK_INFO:
            streams.ranges = self._pack_info()
            kind = self.byte()
        if kind == _CODERS_INFO:
            streams.folders = self._coders_info(streams.ranges)
            kind = self.byte()
        streams.files = [[(folder.nbytes, folder.crc32)] for folder in streams.folders]
        if kind == _SUBSTREAMS_INFO:
            streams.files = self._substreams_info(streams.folders)
            kind = self.byte()
        if kind != _END:
            raise DamagedFile(f"the archive's directory has mark {kind:#x} where streams end")
        return streams

    def _pack_info(self) -> list[tuple[int, int]]:
        offset = _START.size + self.number()
        count = self.count()
        sizes: list[int] = []
        while (kind := self.byte()) != _END:
            if kind == _SIZES:
                sizes = [self.number() for _ in range(count)]
            elif kind == _CRCS:  # of packed bytes; nobody writes them
                self.crcs(count)
            else:
                raise DamagedFile(f"the archive's directory has mark {kind:#x} among its sizes")
        if len(sizes) != count:
            raise DamagedFile("the archive's directory does not say how long its packed bytes are")
        ranges = []
        for size in sizes:
            ranges.append((offset, offset + size))
            offset += size
        if offset > self.end:
            raise DamagedFile("the archive's packed bytes reach into its directory")
        return ranges

    def _coders_info(self, ranges: list[tuple[int, int]]) -> list[Folder]:
        self.expect(_FOLDERS)
        count = self.count()
        self.not_elsewhere()
        plans = [self._plan() for _ in range(count)]
        self.expect(_UNPACKED_SIZES)
        sizes = [[self.number() for _ in range(plan.num_outputs)] for plan in plans]
        crcs: list[int | None] = [None] * count
        while (kind := self.byte()) != _END:
            if kind != _CRCS:
                raise DamagedFile(f"the archive's directory has mark {kind:#x} among its folders")
            crcs = self.crcs(count)
        folders = []
        first = 0
        for plan, outputs, crc32 in zip(plans, sizes, crcs, strict=True):
            inputs = ranges[first : first + plan.num_packed]
            first += plan.num_packed
            if len(inputs) < plan.num_packed:
                raise DamagedFile("the archive's directory has folders without packed bytes")
            folders.append(plan.folder(inputs, outputs, crc32))
        return folders

    def _plan(self) -> _Plan:
        count = self.count(_MOST_CODERS)
        coders = [self._coder() for _ in range(count)]
        num_inputs = sum(coder[2] for coder in coders)
        num_outputs = sum(coder[3] for coder in coders)
        if not 1 <= num_outputs <= _MOST_CODERS or not num_outputs <= num_inputs <= _MOST_CODERS:
            raise DamagedFile("the archive's directory has a folder without a result")
        pairs = [(self.number(), self.number()) for _ in range(num_outputs - 1)]
        num_packed = num_inputs - len(pairs)
        packed = [self.number() for _ in range(num_packed)] if num_packed > 1 else []
        return _Plan([c[:2] for c in coders], num_inputs, num_outputs, pairs, num_packed, packed)

    def _coder(self) -> tuple[bytes, bytes, int, int]:
        """Return a coder's number, its settings, and how many streams go in and come out."""
        flags = self.byte()
        method = self.take(flags & 0x0F).lstrip(b"\0") or COPY
        num_inputs, num_outputs = 1, 1
        if flags & 0x10:
            num_inputs, num_outputs = self.count(_MOST_CODERS), self.count(_MOST_CODERS)
        properties = self.take(self.count()) if flags & 0x20 else b""
        return method, properties, num_inputs, num_outputs

    def _substreams_info(self, folders: list[Folder]) -> list[list[tuple[int, int | None]]]:
        counts = [1] * len(folders)
        kind = self.byte()
        if kind == _NUM_SUBSTREAMS:
            counts = [self.count() for _ in folders]
            if sum(counts) > self.remaining + len(folders):
                raise DamagedFile("the archive's directory promises files and ends before")
            kind = self.byte()
        has_sizes = kind == _SIZES
        sizes = [
            self._sizes(folder.nbytes, count, has_sizes=has_sizes)
            for folder, count in zip(folders, counts, strict=True)
        ]
        kind = self.byte() if has_sizes else kind
        known = [
            folder.crc32 if count == 1 else None
            for folder, count in zip(folders, counts, strict=True)
        ]
        num_unknown = sum(
            count for count, crc32 in zip(counts, known, strict=True) if count != 1 or crc32 is None
        )
        crcs: list[int | None] = [None] * num_unknown
        while kind != _END:
            if kind != _CRCS:
                raise DamagedFile(f"the archive's directory has mark {kind:#x} among its files")
            crcs = self.crcs(num_unknown)
            kind = self.byte()
        rest = iter(crcs)
        return [
            [(size, crc32 if crc32 is not None else next(rest)) for size in group]
            for group, crc32 in zip(sizes, known, strict=True)
        ]

    def _sizes(self, total: int, count: int, *, has_sizes: bool) -> list[int]:
        """Return the sizes of a folder's files; the last one is what is left."""
        if count == 0:
            return []
        if count > 1 and not has_sizes:
            raise DamagedFile("the archive's directory does not say how long its files are")
        sizes = [self.number() for _ in range(count - 1)]
        rest = total - sum(sizes)
        if rest < 0:
            raise DamagedFile("the files of a folder are longer than the folder")
        return [*sizes, rest]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the coders of a folder are joined."""

    coders: list[tuple[bytes, bytes]]
    num_inputs: int
    num_outputs: int
    pairs: list[tuple[int, int]]
    """Which input takes which output."""
    num_packed: int
    packed: list[int]

    def folder(self, ranges: list[tuple[int, int]], sizes: list[int], crc32: int | None) -> Folder:
        """Return the folder over these packed bytes, with these sizes of the outputs."""
        ends = set(range(self.num_outputs)) - {output for _, output in self.pairs}
        if len(ends) != 1 or len({pair[0] for pair in self.pairs}) != len(self.pairs):
            raise DamagedFile("the archive's directory has a folder whose coders are not joined")
        start, stop = ranges[0]
        return Folder(start, stop - start, self._chain(sizes), sizes[ends.pop()], crc32)

    def _chain(self, sizes: list[int]) -> tuple[Coder, ...]:
        """Return the coders from the packed bytes on; empty if they branch."""
        if not len(self.coders) == self.num_inputs == self.num_outputs:
            return ()
        takes = {output: index for index, output in self.pairs}
        starts = set(range(len(self.coders))) - set(takes.values())
        chain: list[Coder] = []
        index: int | None = starts.pop() if len(starts) == 1 else None
        while index is not None and index < len(self.coders) and len(chain) < len(self.coders):
            chain.append(Coder(*self.coders[index], sizes[index]))
            index = takes.get(index)
        return tuple(chain) if len(chain) == len(self.coders) else ()


def _read_files(
    header: _Header,
    limits: Limits,
    budget: Budget,
    findings: list[Finding],
    ranges: list[tuple[int, int]],
) -> Directory:
    """Return the directory from behind its first mark on."""
    streams = _Streams()
    kind = header.byte() if header.remaining else _END
    if kind == _ARCHIVE_PROPERTIES:
        while header.byte() != _END:
            header.take(header.count())
        kind = header.byte()
    if kind == _ADDITIONAL_STREAMS:
        ranges += header.streams().ranges
        kind = header.byte()
    if kind == _MAIN_STREAMS:
        streams = header.streams()
        ranges += streams.ranges
        kind = header.byte()
    entries: tuple[Entry, ...] = ()
    if kind == _FILES:
        entries = _read_entries(header, streams, limits, budget)
        kind = header.byte()
    if kind != _END or header.remaining:
        raise DamagedFile("the archive's directory goes on behind its end")
    if sum(map(len, streams.files)) != sum(entry.folder is not None for entry in entries):
        raise DamagedFile("the archive's directory has more or fewer names than files")
    _check_ranges(ranges, findings)
    return Directory(entries, tuple(streams.folders), tuple(findings))


def _check_ranges(ranges: list[tuple[int, int]], findings: list[Finding]) -> None:
    """Refuse packed bytes that are used twice, and note bytes that are used by nothing."""
    end = _START.size
    for start, stop in sorted(ranges):
        if start < end:
            raise DamagedFile("the archive's packed bytes overlap")
        if start > end:
            text = f"bytes {end} to {start} belong to no file of the archive"
            findings.append(Finding("hidden-bytes", "ambiguous", "", text))
        end = stop


def _read_entries(
    header: _Header, streams: _Streams, limits: Limits, budget: Budget
) -> tuple[Entry, ...]:
    count = header.count()
    limits.check("records", count)
    budget.look(count * _ENTRY_NBYTES)
    names = [_NO_NAME] * count
    empty = [False] * count
    modes = [0] * count
    while (kind := header.byte()) != _END:
        part = _Header(header.take(header.count()), header.end)
        if kind == _NO_STREAM:
            empty = part.flags(count)
        elif kind == _NAMES:
            part.not_elsewhere()
            names = _parse_names(part.take(part.remaining))
        elif kind == _ATTRIBUTES:
            modes = _parse_attributes(part, count)
    if len(names) != count:
        raise DamagedFile(f"the archive has {count} files and {len(names)} names")
    sizes = [
        (index, size, crc32) for index, group in enumerate(streams.files) for size, crc32 in group
    ]
    if len(sizes) != empty.count(False):
        raise DamagedFile("the archive's directory has more or fewer names than files")
    packed = iter(sizes)
    entries = []
    for name, is_empty, mode in zip(names, empty, modes, strict=True):
        folder, nbytes, crc32 = (None, 0, None) if is_empty else next(packed)
        entries.append(Entry(name, nbytes, crc32, folder, _is_link(mode)))
    return tuple(entries)


_ENTRY_NBYTES = 64
_NO_NAME = "content"
"""What a file is called whose name the archive leaves out, as it may."""


def _parse_names(data: bytes) -> list[str]:
    """Return the names, which are UTF-16 and end in a zero each."""
    if not data:
        return []
    if len(data) % 2 or data[-2:] != b"\0\0":
        raise DamagedFile("the archive's names end too early")
    return data[:-2].decode("utf-16-le", "replace").split("\0")


def _parse_attributes(part: _Header, count: int) -> list[int]:
    defined = part.all_or_flags(count)
    part.not_elsewhere()
    return [int.from_bytes(part.take(4), "little") if known else 0 for known in defined]


def _is_link(attributes: int) -> bool:
    """Whether Windows, or Unix in the upper half, says that a file is a link to another one."""
    windows_link, unix_mode = 0x400, 0x8000
    is_unix_link = bool(attributes & unix_mode) and (attributes >> 28) == 0o12
    return bool(attributes & windows_link) or is_unix_link
