"""Files on disk: bounded reads, and writes that are whole or absent.

Every model, state and manifest is read and written here; a run's lock and memory maps are the
exceptions (`checkpointing/run_lock.py`, `tensors.py`). A file is written under a temporary name in
its own folder, synced, and renamed; the folder is synced after that. So a reader, a crash or a full
disk meets the old file or the new one, never a part. The order of these steps is the
whole point: rename before sync can leave an empty file under the final name after a power loss.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar

import xxhash

from torchkeep.errors import DamagedFile, FileMissing, FileProblem, FileUnreadable, SaveRefused
from torchkeep.wording import printable

Buffer = bytes | bytearray | memoryview

TEMPORARY_MARK = ".torchkeep-tmp-"
"""What every temporary's name contains; see `remove_temporaries`."""

CHUNK_NBYTES = 4 << 20
"""What is read, hashed or written in one go: small enough to stay in a processor's cache."""

NUM_THREADS = 2
"""Threads for one file. More gain nothing: the file system lets one writer in at a time."""

GROUP_NBYTES = 1 << 20
"""Small tensors are handled together up to this size, so that each costs no call of its own."""

_SEEKING = threading.Lock()
"""Held between moving a file's position and using it, where there is no call that does both."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


# --- Reading -----------------------------------------------------------------------------------


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


class Scratch:
    """Temporary files for what lies packed in an archive; they are gone when it is closed.

    They lie in the system's folder for temporary files (`TMPDIR`), and nothing is made there before
    it is needed.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._num_files = 0
        self._remove: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> Path:
        """Return a new file with these bytes.

        Raises:
            FileUnreadable: there is no room for it.
        """
        try:
            if self._folder is None:
                self._open()
            self._num_files += 1
            path = Path(f"{self._folder}/{self._num_files}")
            path.write_bytes(data)
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileUnreadable(
                f"there is no room to unpack {len(data):,} bytes ({reason})",
                advice="Set TMPDIR to a folder with room, or unpack the archive yourself.",
            ) from None
        return path

    def _open(self) -> None:
        import shutil  # it brings three compressors, which most files don't need
        import tempfile
        import weakref

        self._folder = Path(tempfile.mkdtemp(prefix="torchkeep-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the files. So does the end of the program, or of what holds this."""
        self._remove()

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
        except ValueError as error:  # there is a null byte in it
            raise FileMissing(f"no file can be called so ({error})", path=path) from None
        except OSError as error:
            raise _unreadable(self.path, error) from None
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
        done = 0
        while done < len(target):
            try:
                count = _preadv(self.fd, target[done:], offset + done)
            except OSError as error:
                raise _unreadable(self.path, error) from None
            if count == 0:
                self.check_unchanged()
                raise DamagedFile(
                    f"the file is truncated: bytes {offset} to {offset + len(target)} are "
                    f"needed, and it ends at {offset + done}",
                    advice="Copy or download it again.",
                    path=self.path,
                )
            done += count

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> InputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        with _SEEKING:  # Windows: one reader at a time
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, nbytes)
    except OSError as error:
        raise _unreadable(path, error) from None


def _preadv(fd: int, target: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [target], offset)
    with _SEEKING:  # Windows, macOS before 11
        os.lseek(fd, offset, os.SEEK_SET)
        piece = os.read(fd, min(len(target), 1 << 24))
    target[: len(piece)] = piece
    return len(piece)


def _unreadable(path: Path, error: OSError) -> FileProblem:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileMissing("there is no such file", advice="Check the path.", path=path)
    if isinstance(error, PermissionError):
        return FileUnreadable("the file may not be read", advice="Check its mode.", path=path)
    reason = error.strerror or str(error)
    return FileUnreadable(f"the file can't be read ({reason})", path=path)


# --- Writing -----------------------------------------------------------------------------------


class OutputFile:
    """A file that is being written under a temporary name.

    Attributes:
        path: the name that it will have.
        durable: whether it will be synced at the end.
    """

    def __init__(self, path: Path, fd: int, *, durable: bool) -> None:
        self.path = path
        self.fd = fd
        self.durable = durable

    def reserve(self, nbytes: int) -> None:
        """Allocate `nbytes` on the disk now, so that a full disk shows before any work."""
        if nbytes and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self.fd, 0, nbytes)
            except OSError as error:
                # A file system without fallocate is no reason to fail: the writes will tell.
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
        elif nbytes:
            os.truncate(self.fd, nbytes)

    def write_at(
        self, offset: int, data: Buffer, *, observe: Callable[[memoryview], object] | None = None
    ) -> None:
        """Write all of `data` at `offset`. Threads may write different ranges at once.

        `observe` is given each chunk just before it is written, while it is on its way through
        the processor's cache anyway; this is how a digest costs next to nothing.
        """
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_NBYTES):
            chunk = view[start : start + CHUNK_NBYTES]
            if observe is not None:
                observe(chunk)
            self._write_chunk(offset + start, chunk)

    def _write_chunk(self, offset: int, chunk: memoryview) -> None:
        start, nbytes = offset, len(chunk)
        while chunk:
            if hasattr(os, "pwrite"):
                count = os.pwrite(self.fd, chunk, offset)
            else:  # Windows: one writer at a time
                with _SEEKING:
                    os.lseek(self.fd, offset, os.SEEK_SET)
                    count = os.write(self.fd, chunk)
            chunk = chunk[count:]
            offset += count
        if self.durable and nbytes >= _WRITEBACK_NBYTES and hasattr(os, "posix_fadvise"):
            # Linux takes this as "start writing these pages to the disk now". The disk then
            # works beside us, and the sync at the end has little left to wait for.
            os.posix_fadvise(self.fd, start, nbytes, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Bring what was written to the disk now, if it is to be there at the end at all."""
        if self.durable:
            os.fsync(self.fd)


_WRITEBACK_NBYTES = 1 << 20


def in_parallel(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return `work(item)` for each item, in order, computed by `NUM_THREADS` threads.

    What a call raises is raised here; calls that have not begun are then dropped.
    """
    # Here, since to inspect a file needs no threads, and starts faster without.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="torchkeep") as pool:
        return list(pool.map(work, items))


def grouped_by_size(
    items: Iterable[_Item], nbytes_of: Callable[[_Item], int], limit: int = GROUP_NBYTES
) -> list[list[_Item]]:
    """Split items into neighbours that together have at most `limit` bytes; a large one is alone.

    >>> grouped_by_size([1, 2, 9, 3], lambda nbytes: nbytes, limit=4)
    [[1, 2], [9], [3]]
    """
    groups: list[list[_Item]] = []
    room = 0
    for item in items:
        nbytes = nbytes_of(item)
        if not groups or nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= nbytes
    return groups


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str], *, durable: bool = True, overwrite: bool = False
) -> Iterator[OutputFile]:
    """Yield a file that takes its name when the block ends, and never exists if it fails.

    Args:
        path: the final name. A symbolic link is followed, so that what it points to is replaced.
        durable: sync the bytes and the folder, so that a power loss can't undo the write.
        overwrite: replace what is there; its mode is kept.

    Raises:
        SaveRefused: the place exists and `overwrite` is not set, the folder is missing or
            read-only, the disk is full, or what is there is read-only or no file. Nothing is left
            behind, and an old file is intact, unless the message says that the new one is there.
    """
    final = _target(path, overwrite=overwrite)
    temporary = _temporary_beside(final)
    try:
        fd = os.open(temporary, _CREATE, 0o666)
        try:
            yield OutputFile(final, fd, durable=durable)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        _publish(temporary, final, overwrite=overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        # Its name tells what it is, so one that can't be removed is no reason to fail.
        with contextlib.suppress(OSError):
            temporary.unlink()
    if durable:
        _sync_name(path, final.parent)


def _target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the file to be made or replaced, the last of a chain of symbolic links."""
    try:
        final = Path(os.path.realpath(path))
        status = final.stat()
    except FileNotFoundError:
        return final
    except OSError as error:
        raise _unwritable(path, error) from None
    except ValueError as error:  # there is a null byte in it
        where = printable(os.fspath(path))
        raise SaveRefused(f"{where}: no file can be called so ({error})") from None
    _check_replaceable(path, status, overwrite=overwrite)
    return final


def _check_replaceable(
    path: str | os.PathLike[str], status: os.stat_result, *, overwrite: bool
) -> None:
    where = printable(os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise SaveRefused(f"{where}: this is {kind}, not a file", advice="Choose another name.")
    if not overwrite:
        raise _exists(path)
    # The system would let it be replaced, if not written to; who made it so meant to keep it.
    if not status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise SaveRefused(
            f"{where}: the file there is read-only",
            advice="Choose another name, or make it writable (`chmod u+w`).",
        )


def _sync_name(path: str | os.PathLike[str], folder: Path) -> None:
    try:
        sync_folder(folder)
    except OSError as error:
        reason = error.strerror or error
        raise SaveRefused(
            f"{printable(os.fspath(path))}: it is written and in its place, but its folder could "
            f"not be synced ({reason}), so that a power loss may undo it",
            advice="Check the disk.",
        ) from error


_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def _publish(temporary: Path, final: Path, *, overwrite: bool) -> None:
    if overwrite:
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(stat.S_IMODE(final.stat().st_mode))
        temporary.replace(final)
        return
    try:
        # A link fails if the name was taken meanwhile; a rename would overwrite it.
        os.link(temporary, final)
    except FileExistsError:
        raise _exists(final) from None
    except OSError:  # a file system without hard links
        temporary.replace(final)


@contextlib.contextmanager
def staged_file(
    path: str | os.PathLike[str], *, durable: bool = True, overwrite: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; a file written there takes the name at the end.

    For who wants to look at a written file before it takes its place. If the block fails, it is
    removed.

    Args:
        path: the final name, as in `atomic_file`.
        durable: sync the folder; the file itself should be written with the same `durable`.
        overwrite: replace what is there; its mode is kept.

    Raises:
        SaveRefused: as by `atomic_file`.
    """
    final = Path(os.path.realpath(path))
    if not overwrite and final.exists():
        raise _exists(path)
    temporary = _temporary_beside(final)
    try:
        yield temporary
        _publish(temporary, final, overwrite=overwrite)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    if durable:
        sync_folder(final.parent)


def write_file(
    path: str | os.PathLike[str], data: Buffer, *, durable: bool = True, overwrite: bool = False
) -> None:
    """Write `data` to `path` whole or not at all. Arguments and errors as in `atomic_file`."""
    with atomic_file(path, durable=durable, overwrite=overwrite) as file:
        file.write_at(0, data)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary folder that takes its name when the block ends.

    What is written into it should be written with the same `durable`.

    Args:
        path: the final name; nothing may be there.
        durable: sync the folder and its parent.

    Raises:
        SaveRefused: the place exists, or the system refuses. Nothing is left behind.
    """
    final = Path(path)
    if final.exists():
        raise _exists(path)
    temporary = _temporary_beside(final)
    try:
        temporary.mkdir()
        yield temporary
        if durable:
            sync_folder(temporary)
        temporary.rename(final)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary.exists():
            _remove_tree(temporary)
    if durable:
        sync_folder(final.parent)


def remove_files(paths: Iterable[Path], *, durable: bool = True) -> None:
    """Delete files in their order, each for good before the next if `durable`.

    Raises:
        SaveRefused: the system refuses.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        if durable:
            sync_folder(path.parent)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Delete a folder so that a crash on the way can't leave half of it under its name."""
    folder = Path(path)
    doomed = _temporary_beside(folder)
    try:
        folder.rename(doomed)
        import shutil

        shutil.rmtree(doomed)
    except OSError as error:
        raise _unwritable(path, error) from error


def _remove_tree(folder: Path) -> None:
    """Remove as much of a folder as can be removed."""
    import shutil  # it brings three compressors, which reading a file does not need

    shutil.rmtree(folder, ignore_errors=True)


def _temporary_beside(path: Path) -> Path:
    # A name may have 255 bytes, so a long one is shortened to leave room for the rest.
    start = path.name.encode("utf-8", "ignore")[:200].decode("utf-8", "ignore")
    return path.with_name(f".{start}{TEMPORARY_MARK}{os.urandom(6).hex()}")


def remove_temporaries(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete what interrupted writes left in `folder`, and return it.

    Only the one process that writes to the folder may call this: another writer's temporary
    looks the same.
    """
    found = [item for item in Path(folder).iterdir() if TEMPORARY_MARK in item.name]
    for item in found:
        if item.is_dir() and not item.is_symlink():
            _remove_tree(item)
        else:
            item.unlink(missing_ok=True)
    return found


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can (Windows can't)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(fd)


def _exists(path: str | os.PathLike[str]) -> SaveRefused:
    return SaveRefused(
        f"{printable(os.fspath(path))}: there is something already",
        advice="Choose another name, or pass overwrite=True to replace it.",
    )


def _unwritable(path: str | os.PathLike[str], error: OSError) -> SaveRefused:
    where = printable(os.fspath(path))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SaveRefused(
            f"{where}: the disk is full; nothing was changed",
            advice="Free some space, or save elsewhere.",
        )
    if error.errno == errno.EFBIG:
        return SaveRefused(
            f"{where}: larger than a file may be here; nothing was changed",
            advice="Raise the limit (`ulimit -f`), or save to another file system.",
        )
    if error.errno == errno.ENAMETOOLONG:
        return SaveRefused(f"{where}: the name is too long", advice="Choose a shorter one.")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SaveRefused(f"{where}: its folder does not exist", advice="Create the folder first.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SaveRefused(f"{where}: its folder may not be written to", advice="Check its mode.")
    return SaveRefused(f"{where}: could not be written ({error.strerror or error})")


# --- Digests -----------------------------------------------------------------------------------


def digest(data: Buffer) -> str:
    """Return the digest that torchkeep stores everywhere: XXH3, 128 bits, 32 hex digits.

    It finds damage; it is no protection against somebody who wants to deceive.
    Source: the xxHash specification, https://xxhash.com.
    """
    return xxhash.xxh3_128_hexdigest(data)


def new_digest() -> xxhash.xxh3_128:
    """Return the same digest as an object with `update` and `hexdigest`, for data in pieces."""
    return xxhash.xxh3_128()
