"""Bounded reads of files, of parts of them, and of bytes in memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from torchkeep.errors import DamagedFile, FileMissing, FileProblem, FileUnreadable
from torchkeep.files.buffers import SEEKING
from torchkeep.files.memory import address_of
from torchkeep.files.scratch import Scratch

_PAGE = 4096
_CLOSE = 32
_WORTH_A_DETOUR = 64 << 10
_DETOUR_NBYTES = 256 << 10
"""A copy to a place in its page that is a few bytes behind the source's place in its own takes four
times as long: processors take each load for one that must wait for the store before it ("4K
aliasing"). All large tensors of a file are hit, or none. A detour through the cache is quicker."""


class Readable(Protocol):
    """Bytes that can be read at offsets: a file, a part of one, or an unpacked part in memory."""

    @property
    def path(self) -> Path:
        """What to call it in messages."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    @property
    def source(self) -> Path | None:
        """The file on disk that holds these bytes as they are; None if they were unpacked."""
        ...

    @property
    def start(self) -> int:
        """Where in `source` they start."""
        ...

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` on; `DamagedFile` if it ends before that."""
        ...


class Stream(Protocol):
    """Bytes that are read forward."""

    def read(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes, or fewer where the stream ends."""
        ...


class Stamp(NamedTuple):
    """What tells whether a file on disk is still the one that it was, with the same bytes."""

    device: int
    """The number of the file system."""
    inode: int
    """The number of the file in it."""
    nbytes: int
    """Its size."""
    modified_ns: int
    """When its bytes were changed last, in nanoseconds; file systems may count in milliseconds."""

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return the stamp in a file's status."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def changed(path: str | os.PathLike[str]) -> DamagedFile:
    """Return the error that says that a file is another one than a moment ago."""
    return DamagedFile(
        "the file was changed or replaced while it was read",
        advice="Wait until it is written, and read it again.",
        path=path,
    )


class InputFile:
    """A regular file, open for reads at given offsets.

    Attributes:
        path: the path as it was given.
        nbytes: the file's size when it was opened.
        stamp: what it was when it was opened.
        source: the same path.
        start: 0.
        scratch: where to put what lies packed in it, if it is to be loaded.

    Raises:
        FileMissing: there is nothing at the path.
        FileUnreadable: it is a folder, a device or a pipe, or may not be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, scratch: Scratch | None = None) -> None:
        self.path = self.source = Path(path)
        self.start = 0
        self.scratch = scratch
        try:
            # Without O_NONBLOCK, opening a pipe would wait for a writer for ever.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self.fd = os.open(self.path, flags)
        except ValueError:
            raise FileMissing("no file can be called so (with a null byte)", path=path) from None
        except OSError as error:
            raise unreadable(self.path, error) from None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise FileUnreadable(f"this is {kind}, not a file", path=path)
        self.nbytes = status.st_size
        self.stamp = Stamp.of(status)

    def check_unchanged(self) -> None:
        """Raise if somebody has written to the file since it was opened.

        That another file has its name now does no harm: this one is read to its end.

        Raises:
            DamagedFile: it was changed.
        """
        if Stamp.of(os.fstat(self.fd)) != self.stamp:
            raise changed(self.path)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` on.

        Raises:
            DamagedFile: the file ends before that.
            FileUnreadable: the system reports a read error.
        """
        _check_range(offset, nbytes, self.nbytes, self.path)
        pieces: list[bytes] = []
        missing = nbytes
        while missing:
            piece = _pread(self.fd, missing, offset + nbytes - missing, self.path)
            if not piece:
                raise changed(self.path)
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` (a flat, writable view of bytes) from `offset` on.

        Raises:
            DamagedFile: the file ends before that.
            FileUnreadable: the system reports a read error.
        """
        if len(target) >= _WORTH_A_DETOUR and 0 < (address_of(target) - offset) % _PAGE < _CLOSE:
            self._read_by_detour(offset, target)
            return
        done = 0
        while done < len(target):
            try:
                count = _preadv(self.fd, target[done:], offset + done)
            except OSError as error:
                raise unreadable(self.path, error) from None
            if count == 0:
                self.check_unchanged()
                raise DamagedFile(
                    f"the file is truncated: bytes {offset} to {offset + len(target)} are "
                    f"needed, and it ends at {offset + done}",
                    advice="Copy or download it again.",
                    path=self.path,
                )
            done += count

    def _read_by_detour(self, offset: int, target: memoryview) -> None:
        """Fill `target` over a buffer whose place in its page is far from that of both sides."""
        with mmap.mmap(-1, _DETOUR_NBYTES + _PAGE) as memory, memoryview(memory) as pages:
            for done in range(0, len(target), _DETOUR_NBYTES):
                start = (offset + done + _PAGE // 2) % _PAGE
                nbytes = min(_DETOUR_NBYTES, len(target) - done)
                with pages[start : start + nbytes] as buffer:
                    self.read_into(offset + done, buffer)
                    target[done : done + nbytes] = buffer

    def close(self) -> None:
        """Close the file."""
        # What was only read is not lost by a failing close, and an error would hide what was found.
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FilePart:
    """A window of something readable: a file inside an archive that is stored as it is.

    Attributes:
        whole: what it is a part of.
        path: what to call it in messages.
        nbytes: its size.
        source: the file on disk that holds it, if there is one.
        start: where in that it starts.
    """

    def __init__(self, whole: Readable, start: int, nbytes: int, path: Path | None = None) -> None:
        if start < 0 or nbytes < 0 or start + nbytes > whole.nbytes:
            raise DamagedFile(
                f"bytes {start} to {start + nbytes} are needed, and the file ends at {whole.nbytes}"
            )
        self.whole = whole
        self._offset = start
        self.path = path or whole.path
        self.source = whole.source
        self.start = whole.start + start
        self.nbytes = nbytes

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` on; `DamagedFile` if it ends before that."""
        _check_range(offset, nbytes, self.nbytes, self.path)
        return self.whole.read_at(self._offset + offset, nbytes)


class MemoryFile:
    """Bytes in memory, read like a file: what an archive holds packed.

    Attributes:
        path: what to call it in messages.
        nbytes: its size.
        source: None.
        start: 0.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self.path = path
        self.source: Path | None = None
        self.start = 0
        self.nbytes = len(data)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` on; `DamagedFile` if it ends before that."""
        _check_range(offset, nbytes, self.nbytes, self.path)
        return self._data[offset : offset + nbytes]


def _check_range(offset: int, nbytes: int, available: int, path: Path) -> None:
    if offset < 0 or nbytes < 0 or offset + nbytes > available:
        raise DamagedFile(
            f"the file is truncated: bytes {offset} to {offset + nbytes} are needed, "
            f"and it ends at {available}",
            advice="Copy or download it again.",
            path=path,
        )


def _pread(fd: int, nbytes: int, offset: int, path: Path) -> bytes:
    try:
        if hasattr(os, "pread"):
            return os.pread(fd, nbytes, offset)
        with SEEKING:  # Windows: one reader at a time
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, nbytes)
    except OSError as error:
        raise unreadable(path, error) from None


def _preadv(fd: int, target: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [target], offset)
    with SEEKING:  # Windows, macOS before 11
        os.lseek(fd, offset, os.SEEK_SET)
        piece = os.read(fd, min(len(target), 1 << 24))
    target[: len(piece)] = piece
    return len(piece)


def unreadable(path: Path, error: OSError) -> FileProblem:
    """Return the error that says why a file can't be read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        index = path.with_name(f"{path.name}.index.json")
        advice = "Check the path."
        if index.exists():  # as after a save in shards, which has no file of the name given
            advice = f"The model is in shards: give {index.name}, or their folder."
        return FileMissing("there is no such file", advice=advice, path=path)
    if isinstance(error, PermissionError):
        return FileUnreadable("the file may not be read", advice="Check its mode.", path=path)
    reason = error.strerror or str(error)
    return FileUnreadable(f"the file can't be read ({reason})", path=path)
