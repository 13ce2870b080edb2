"""Archives of files: zip, tar, 7z, and a lone file packed by gzip, bzip2, xz, lzma or zlib.

Layout: that of each kind stands in `zips.directory`, `tar_directory` and `seven_zip`; a packed tar
(`.tar.gz`) is unpacked as it is read. Each file in an archive is described as it would be on the
disk (`archives.members`); one that is stored as it is can be loaded from where it lies, a packed
one from a temporary file.

Limits: what is packed is unpacked into memory, file by file, up to `pickle_nbytes` in all and to
`expansion` times the size of the outermost file. Archives are followed `archive_depth` deep. Of
zip's methods, stored, deflated, bzip2, lzma and xz are read. Nothing encrypted is. RAR, Zstandard
and LZ4 are named only.

A tar with a file `storages` is what PyTorch before 0.1.10 wrote: see `torch.tar`.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, FileProblem, NotAModelFile, UnsupportedContent
from torchkeep.files import Readable, Stream
from torchkeep.formats.archives import seven_zip
from torchkeep.formats.archives.bodies import PackedBody, StoredBody, nesting_of
from torchkeep.formats.archives.members import Look
from torchkeep.formats.archives.seven_zip_coders import LZMA, Coder, open_chain
from torchkeep.formats.archives.tar_directory import TarEntry, TarReader, first_name, is_tar_header
from torchkeep.formats.archives.unpacking import (
    Decompressor,
    PartStream,
    Unpacked,
    bunzip,
    gunzip,
    inflate,
    unxz,
    zlib_inflate,
)
from torchkeep.formats.format import HEAD_NBYTES, Format
from torchkeep.formats.torch import tar as torch_tar
from torchkeep.formats.zips.directory import Record
from torchkeep.formats.zips.rooted import Archive
from torchkeep.formats.zips.structs import DEFLATED, END_MAGIC, STORED
from torchkeep.pickles.limits import Limits


@dataclass(frozen=True, slots=True)
class _Packer:
    """A program that packs a single file."""

    name: str
    magic: bytes
    start: Callable[[], Decompressor]
    again: bytes = b""
    """How another packed run of bytes starts that may follow."""


_PACKERS = (
    _Packer("gzip", b"\x1f\x8b\x08", gunzip, b"\x1f\x8b\x08"),
    _Packer("bzip2", b"BZh", bunzip, b"BZh"),
    _Packer("xz", b"\xfd7zXZ\x00", unxz, b"\xfd7zXZ\x00"),
    _Packer("lzma", b"\x5d\x00\x00", unxz),
    _Packer("zlib", b"\x78", zlib_inflate),
)
_UNREAD = {
    b"Rar!\x1a\x07": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d": "compress",
}
_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".lzma", ".z", ".zlib"})


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as an archive does."""
    return (
        head.startswith((seven_zip.MAGIC, *_UNREAD))
        or (nbytes == len(head) and head.startswith(END_MAGIC))
        or (is_tar_header(head) and not _sniff_torch_tar(head, nbytes))
        or _packer_of(head) is not None
    )


def _sniff_torch_tar(head: bytes, nbytes: int) -> bool:
    del nbytes
    return first_name(head) in torch_tar.NAMES


def _packer_of(head: bytes) -> _Packer | None:
    """Return what packed a file; only marks that are short are tried out."""
    for packer in _PACKERS:
        if head.startswith(packer.magic):
            return packer if len(packer.magic) > 3 or _unpacks(packer, head) else None
    return None


def _unpacks(packer: _Packer, head: bytes) -> bool:
    try:
        piece = packer.start().decompress(head, HEAD_NBYTES)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, MemoryError):
        return False
    # Two bytes of zlib's are too little to go by: joblib packs pickles in that way.
    return packer.name not in ("zlib", "lzma") or piece[:1] == b"\x80"


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the archive's files are."""
    head = file.read_at(0, min(file.nbytes, HEAD_NBYTES))
    if is_tar_header(head):
        return _describe_tar(file, limits)
    if head.startswith(seven_zip.MAGIC):
        return _describe_7z(file, limits)
    if head.startswith(END_MAGIC):
        raise NotAModelFile("this is an empty zip archive", advice="Check the path.")
    packer = _packer_of(head)
    if packer is not None:
        return _describe_packed(file, packer, limits)
    name = next((name for magic, name in _UNREAD.items() if head.startswith(magic)), "")
    if not name:
        raise DamagedFile("the file does not start as an archive does")
    raise UnsupportedContent(
        f"this is an archive of {name}, which torchkeep does not unpack",
        advice="Unpack it yourself and look into what comes out.",
    )


# --- Zip -----------------------------------------------------------------------------------------

_BZIP2, _LZMA, _XZ = 12, 14, 95


def describe_zip(archive: Archive) -> Contents:
    """Return what the files of a zip archive are that is none of PyTorch's own kinds."""
    file, directory = archive.file, archive.directory
    look = Look(file, "zip archive", archive.limits)
    look.findings += directory.findings
    encrypted = {f.place for f in directory.findings if f.rule == "encrypted-flag"}
    for record in directory.records.values():
        if record.is_link:
            look.add_link(record.name, "a link")
        elif record.name.endswith("/") and not record.nbytes:
            continue
        elif record.method == STORED and record.name not in encrypted:
            look.add(record.name, StoredBody(file, record.offset, record.nbytes))
        else:
            _add_packed(look, file, record, is_encrypted=record.name in encrypted)
    return look.result()


def _add_packed(look: Look, file: Readable, record: Record, *, is_encrypted: bool) -> None:
    try:
        if is_encrypted:
            raise UnsupportedContent("it is encrypted")
        stream = _open_record(look, file, record)
    except FileProblem as problem:
        look.add_closed(record.name, problem)
        return
    crc32 = record.crc32 or None
    look.add(record.name, PackedBody(stream, record.nbytes, crc32))


def _open_record(look: Look, file: Readable, record: Record) -> Stream:
    packed = PartStream(file, record.offset, record.packed_nbytes)
    budget = look.nesting.budget
    if record.method == DEFLATED:
        return Unpacked(packed, inflate, budget)
    if record.method == _BZIP2:
        return Unpacked(packed, bunzip, budget)
    if record.method == _XZ:
        return Unpacked(packed, unxz, budget)
    if record.method == _LZMA:
        # Two bytes of version, the length of the settings, the settings as in 7z.
        length = int.from_bytes(packed.read(4)[2:], "little")
        return open_chain(
            packed, (Coder(LZMA, packed.read(min(length, 16)), record.nbytes),), budget
        )
    raise UnsupportedContent(f"it is packed with method {record.method}")


# --- Tar -----------------------------------------------------------------------------------------


def _describe_tar(file: Readable, limits: Limits) -> Contents:
    look = Look(file, "tar archive", limits)
    entries: list[TarEntry] = []
    reader = TarReader(PartStream(file), limits)
    problem = None
    try:
        for entry in reader:
            look.nesting.budget.visit()
            entries.append(entry)
    except FileProblem as broken:
        problem = broken
    if torch_tar.is_meant([entry.name for entry in entries]):
        return torch_tar.describe(file, entries, tuple(reader.findings), problem, limits)
    for entry in entries:
        if entry.offset + entry.nbytes <= file.nbytes:
            _add_entry(look, entry, StoredBody(file, entry.offset, entry.nbytes))
    look.findings += reader.findings
    return look.result(problem)


def _add_entry(look: Look, entry: TarEntry, body: StoredBody | PackedBody) -> None:
    if entry.kind == "file":
        look.add(entry.name, body)
    elif entry.kind == "sparse":
        text = "it is stored with holes, and not looked into"
        look.add_closed(entry.name, UnsupportedContent(text))
    elif entry.kind != "folder":
        look.add_link(entry.name, f"a {entry.kind}")


def _describe_packed(file: Readable, packer: _Packer, limits: Limits) -> Contents:
    """Return what is in a file packed by gzip or the like: a tar's files, or the one file."""
    budget = nesting_of(file, limits).budget

    def open_packed() -> Unpacked:
        return Unpacked(PartStream(file), packer.start, budget, again=packer.again)

    is_tar = _is_plain_tar(open_packed(), limits)
    kind = f"{packer.name}-packed tar archive" if is_tar else f"{packer.name} archive"
    look = Look(file, kind, limits)
    stream = open_packed()
    problem = None
    try:
        if is_tar:
            _walk_packed_tar(look, stream, limits)
        else:
            look.add(_inner_name(file), PackedBody(stream, None))
        _check_end(look, stream)
    except FileProblem as broken:
        problem = broken
    return look.result(problem)


def _is_plain_tar(stream: Unpacked, limits: Limits) -> bool:
    """Whether a stream starts as a tar does, and as none of PyTorch's own."""
    try:
        first = next(iter(TarReader(stream, limits)), None)
    except FileProblem:
        return False
    return first is not None and not torch_tar.is_meant([first.name])


def _walk_packed_tar(look: Look, stream: Unpacked, limits: Limits) -> None:
    reader = TarReader(stream, limits)
    try:
        for entry in reader:
            _add_entry(look, entry, PackedBody(stream, entry.nbytes))
    finally:
        look.findings += reader.findings


def _check_end(look: Look, stream: Unpacked) -> None:
    """Look at what follows the packed bytes, once all of them were taken."""
    if stream.read(1):
        return
    if not stream.finished:
        raise DamagedFile(
            "the archive is truncated: its packed bytes end too early",
            advice="Copy or download the file again.",
        )
    if stream.leftover:
        look.note("trailing-bytes", "ambiguous", "", "there are bytes behind the packed ones")


def _inner_name(file: Readable) -> str:
    path = file.path
    return path.stem if path.suffix.casefold() in _SUFFIXES else "content"


# --- 7z ------------------------------------------------------------------------------------------


def _describe_7z(file: Readable, limits: Limits) -> Contents:
    look = Look(file, "7z archive", limits)
    directory = seven_zip.read_directory(file, limits, look.nesting.budget)
    look.findings += directory.findings
    names: set[str] = set()
    folder = _Folder(look, file, directory)
    for entry in directory.entries:
        if entry.name.casefold() in names:
            look.note("duplicate-record", "ambiguous", entry.name, "two files have this name")
        names.add(entry.name.casefold())
        folder.add(entry)
    return look.result()


class _Folder:
    """The folder of a 7z archive whose files are being gone through."""

    def __init__(self, look: Look, file: Readable, directory: seven_zip.Directory) -> None:
        self._look = look
        self._file = file
        self._directory = directory
        self._index: int | None = None
        self._stream: Stream | None = None
        self._position = 0
        self._problem: FileProblem | None = None

    def add(self, entry: seven_zip.Entry) -> None:
        """Look at the next file."""
        if entry.folder is None:
            return
        if entry.folder != self._index:
            self._open(entry.folder)
        folder = self._directory.folders[entry.folder]
        offset = folder.offset + self._position
        self._position += entry.nbytes
        if self._problem is not None:
            self._look.add_closed(entry.name, self._problem)
        elif entry.is_link:
            self._look.add_link(entry.name, "a link")
            self._step_over(self._packed(entry))
        elif seven_zip.is_stored(folder):
            self._look.add(entry.name, StoredBody(self._file, offset, entry.nbytes))
        else:
            self._add_packed(entry)

    def _open(self, index: int) -> None:
        self._index, self._position, self._problem = index, 0, None
        folder = self._directory.folders[index]
        try:
            self._stream = seven_zip.open_folder(self._file, folder, self._look.nesting.budget)
        except FileProblem as problem:
            self._problem = problem

    def _packed(self, entry: seven_zip.Entry) -> PackedBody:
        assert self._stream is not None  # noqa: S101  (for the type checker; `_open` was called)
        return PackedBody(self._stream, entry.nbytes, entry.crc32)

    def _add_packed(self, entry: seven_zip.Entry) -> None:
        body = self._packed(entry)
        self._look.add(entry.name, body)
        self._step_over(body)

    def _step_over(self, body: PackedBody) -> None:
        try:
            body.step_over()
        except FileProblem as problem:
            self._problem = problem


TORCH_TAR = Format("torch-tar", _sniff_torch_tar, describe)
FORMAT = Format("archive", sniff, describe)
