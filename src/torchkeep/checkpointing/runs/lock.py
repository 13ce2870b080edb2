"""One owner per run folder."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import ClassVar

from torchkeep.errors import CheckpointProblem
from torchkeep.files import sync_folder
from torchkeep.wording import printable

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
"""The file in a run's folder that is locked; who has it is written in it."""

# Elsewhere `struct flock` has its fields in another order, or the system has no such locks.
_HAS_FILE_LOCKS = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")


class RunLock:
    """Keeps other processes from writing to a run folder, until it is released or we die.

    The lock belongs to our opened file, where the system has that (Linux). POSIX `lockf`, used
    elsewhere, belongs to the process, and is lost when anything in it opens and closes `.lock`: a
    copy of the folder is enough. A forked DataLoader worker inherits the opened file, and would
    hold the run after the training process was killed; so it closes it. (A fork that Python does
    not know of, in a C library, holds the run until it ends.)

    Raises:
        CheckpointProblem: another process, or another Checkpointer of this one, has it.
    """

    _ours: ClassVar[dict[Path, RunLock]] = {}

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / LOCK_NAME
        if self.path in self._ours:  # lockf does not see two owners in one process
            raise self._taken(folder, "this process already")
        try:
            _make_folder(folder.resolve())
            self._fd = _open_lock(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise CheckpointProblem(
                f"{folder}: the run's folder can't be written to ({error.strerror})",
                advice="Check its mode, or choose another folder.",
            ) from None
        self._ours[self.path] = self
        try:
            _lock(self._fd)
        except OSError as error:
            owner = _named(self._fd)
            self.release()
            if not isinstance(error, BlockingIOError | PermissionError):
                raise CheckpointProblem(
                    f"{folder}: the run's folder can't be locked ({error.strerror})",
                    advice="Choose a folder on a file system that has locks.",
                ) from None
            raise self._taken(folder, owner) from None
        # Who has it is only told to others: a full disk must not keep a run from going on.
        with contextlib.suppress(OSError):
            os.truncate(self._fd, 0)
            os.write(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    @staticmethod
    def _taken(folder: Path, owner: str) -> CheckpointProblem:
        advice = "Stop it first, or choose another folder."
        if number := _num_strangers():
            advice = (
                f"If it is another one of the {number} processes that were started together "
                "(WORLD_SIZE), call torch.distributed.init_process_group() before the "
                "Checkpointer, and they keep one run. Otherwise stop it first, or choose another "
                "folder."
            )
        return CheckpointProblem(f"{folder}: {owner} writes to this run", advice=advice)

    def release(self) -> None:
        """Let others in."""
        if self._ours.get(self.path) is self:
            # Closing alone frees it only when a child that was forked a moment ago has closed its
            # copy of the opened file, too.
            with contextlib.suppress(OSError):  # a file system without locks has none to give up
                _unlock(self._fd)
            self._close()

    def _close(self) -> None:
        del self._ours[self.path]
        with contextlib.suppress(OSError):  # it is closed all the same
            os.close(self._fd)

    @classmethod
    def forget_all(cls) -> None:
        """Close what a forked process inherited. The parent's locks stay."""
        for lock in list(cls._ours.values()):
            lock._close()


def _num_strangers() -> int:
    """Return how many processes a launcher started together, if they have no process group."""
    distributed = sys.modules.get("torch.distributed")  # who did not import it has no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return 0
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() and int(text) > 1 else 0


def writer_of(folder: Path) -> str:
    """Return who writes to a run, as in `process 4711 on machine`; empty if nobody does.

    Nothing is locked or changed by asking. Where the system can't tell (Windows) nobody does.
    """
    path = folder.resolve() / LOCK_NAME
    if path in RunLock._ours:
        return f"process {os.getpid()} on {socket.gethostname()}"
    try:
        fd = _open_lock(path, os.O_RDONLY)
    except OSError:  # no run has been here, or it is not ours to read
        return ""
    try:
        return _named(fd) if _is_locked(fd) else ""
    finally:
        os.close(fd)


def _named(fd: int) -> str:
    """Return who is written in the lock file."""
    text = os.pread(fd, 200, 0).decode(errors="replace").strip()
    return printable(text) or "another process"


_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def _open_lock(path: Path, flags: int) -> int:
    """Open a lock file, and nothing that a stranger's folder has in its place.

    A link would have another file emptied, and a pipe would be waited for.

    Raises:
        OSError: it can't be opened, or is no plain file.
    """
    fd = os.open(path, flags | _FLAGS, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, ".lock is no plain file")
    return fd


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RunLock.forget_all)


def _make_folder(folder: Path) -> None:
    """Make a folder with those above it, so that a power loss can't undo it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _lock(fd: int) -> None:
    """Lock the opened file, or raise BlockingIOError or PermissionError if another has it."""
    if _HAS_FILE_LOCKS:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
    elif fcntl is not None:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(fd: int) -> None:
    """Give the lock up, for every process that has a copy of the opened file."""
    if _HAS_FILE_LOCKS:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_UNLCK))
    elif fcntl is not None:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def _is_locked(fd: int) -> bool:
    """Tell whether another opened file of the same path has the lock."""
    try:
        if _HAS_FILE_LOCKS:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
            return bool(struct.unpack("h", found[:2])[0] != fcntl.F_UNLCK)
        if fcntl is not None:
            # A shared one is enough to notice an owner, and needs no right to write.
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _whole_file(kind: int) -> bytes:
    """Make a `struct flock`: type, whence, start, length (0: all of it), process (0: none)."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)
