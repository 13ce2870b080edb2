"""Writes that are whole or absent.

A file is written under a temporary name in its own folder, synced, and renamed; the folder is
synced after that. So a reader, a crash or a full disk meets the old file or the new one, never a
part. The order of these steps is the whole point: rename before sync can leave an empty file under
the final name after a power loss.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from torchkeep.errors import FileUnreadable, SaveRefused
from torchkeep.files.buffers import Buffer
from torchkeep.files.direct import DirectFile
from torchkeep.files.output import OutputFile
from torchkeep.wording import printable

TEMPORARY_MARK = ".torchkeep-tmp-"
"""What every temporary's name contains; see `remove_temporaries`."""


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str],
    *,
    durable: bool = True,
    overwrite: bool = False,
    background: bool = False,
) -> Iterator[OutputFile]:
    """Yield a file that takes its name when the block ends, and never exists if it fails.

    Args:
        path: the final name. A symbolic link is followed, so that what it points to is replaced.
        durable: sync the bytes and the folder, so that a power loss can't undo the write.
        overwrite: replace what is there; its mode is kept.
        background: take as little of the processors as can be, for somebody else computes.

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
            file = (DirectFile if background else OutputFile)(final, fd, durable=durable)
            yield file
            file.flush()
        finally:
            os.close(fd)
        _publish(temporary, final, overwrite=overwrite)
    except OSError as error:
        raise unwritable(path, error) from error
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
        raise unwritable(path, error) from None
    except ValueError:
        where = printable(os.fspath(path))
        raise SaveRefused(f"{where}: no file can be called so (with a null byte)") from None
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
    final = _target(path, overwrite=overwrite)
    temporary = _temporary_beside(final)
    try:
        yield temporary
        _publish(temporary, final, overwrite=overwrite)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if durable:
        _sync_name(path, final.parent)


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
        SaveRefused: the place exists, or the system refuses. Nothing is left behind, unless the
            message says that the folder is there.
    """
    final = Path(path)
    if final.exists():
        raise _exists(path, "Choose another name; a folder is never replaced.")
    temporary = _temporary_beside(final)
    try:
        temporary.mkdir()
        yield temporary
        # A file's temporary that could not be removed would stay in it for good.
        for item in _temporaries_in(temporary):
            item.unlink(missing_ok=True)
        if durable:
            sync_folder(temporary)
        temporary.rename(final)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary.exists():
            _remove_tree(temporary)
    if durable:
        _sync_name(path, final.parent)


def link_file(source: Path, target: Path, *, durable: bool = True) -> bool:
    """Give a file a second name, and return whether that could be done.

    It can't if the source is gone or no file, on another file system than the target, has as many
    names as it may have, or if the file system knows no such links.

    Args:
        source: the file.
        target: the name; nothing may be there.
        durable: sync the file, which may have been written without.

    Raises:
        OSError: the file can't be synced.
    """
    try:
        if not stat.S_ISREG(source.lstat().st_mode):
            return False
        os.link(source, target)
    except OSError:
        return False
    if durable:
        _sync_file(target)
    return True


def _sync_file(path: Path) -> None:
    # Windows syncs only what is open for writing; elsewhere the file may be read-only.
    fd = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_files(paths: Iterable[Path], *, durable: bool = True) -> None:
    """Delete files in their order, each for good before the next if `durable`.

    Raises:
        SaveRefused: the system refuses.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            if durable:
                sync_folder(path.parent)
        except OSError as error:
            raise unwritable(path, error) from error


def remove_folder(path: str | os.PathLike[str], *, durable: bool = True) -> None:
    """Delete a folder so that a crash on the way can't leave half of it under its name.

    Args:
        path: the folder.
        durable: sync its loss of the name first, so that a power loss can't bring it back half
            empty.

    Raises:
        SaveRefused: the system refuses. What is left has a temporary's name, or nothing was done.
    """
    folder = Path(path)
    doomed = _temporary_beside(folder)
    try:
        folder.rename(doomed)
        if durable:
            sync_folder(folder.parent)
        import shutil

        shutil.rmtree(doomed)
    except OSError as error:
        raise unwritable(path, error) from error


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
    looks the same. What can't be removed is left for the next time.

    Raises:
        FileUnreadable: the folder can't be read.
    """
    try:
        found = _temporaries_in(Path(folder))
    except OSError as error:
        raise FileUnreadable(
            f"the folder can't be read ({error.strerror or error})", path=folder
        ) from error
    for item in found:
        if item.is_dir() and not item.is_symlink():
            _remove_tree(item)
        else:
            with contextlib.suppress(OSError):
                item.unlink()
    return found


def _temporaries_in(folder: Path) -> list[Path]:
    return [item for item in folder.iterdir() if TEMPORARY_MARK in item.name]


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


def _exists(
    path: str | os.PathLike[str],
    advice: str = "Choose another name, or pass overwrite=True to replace it.",
) -> SaveRefused:
    return SaveRefused(f"{printable(os.fspath(path))}: there is something already", advice=advice)


def unwritable(path: str | os.PathLike[str], error: OSError) -> SaveRefused:
    """Return what is raised where the system refuses to write."""
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
