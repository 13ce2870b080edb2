"""One owner per run folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import ClassVar

from torchkeep.errors import CheckpointProblem

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """Keeps other processes from writing to a run folder, until it is released or we die.

    The lock is POSIX `lockf`, not `flock`: a forked DataLoader worker would inherit the latter
    and hold the run for seconds after the training process was killed.

    Raises:
        CheckpointProblem: another process, or another Checkpointer of this one, has it.
    """

    _ours: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / ".lock"
        if self.path in self._ours:  # lockf does not see two owners in one process
            raise self._taken(folder, "this process already")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CheckpointProblem(
                f"{folder}: the run's folder can't be written to ({error.strerror})",
                advice="Check its mode, or choose another folder.",
            ) from None
        try:
            if fcntl is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._fd, 200, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise self._taken(folder, owner or "another process") from None
        os.truncate(self._fd, 0)
        os.write(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._ours.add(self.path)

    @staticmethod
    def _taken(folder: Path, owner: str) -> CheckpointProblem:
        return CheckpointProblem(
            f"{folder}: {owner} writes to this run",
            advice="Stop it first, or choose another folder.",
        )

    def release(self) -> None:
        """Let others in."""
        if self.path in self._ours:
            self._ours.remove(self.path)
            os.close(self._fd)
