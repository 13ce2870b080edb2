"""What the processes that `--nproc` has started know of each other's end.

A thread of each looks whether another one has ended, or the one that started them: who is waiting
within PyTorch for somebody that never comes hears no signal, and NCCL waits for ten minutes.

They meet in a folder of the one that has started them: a file per process that is at work, which
the system unlocks when that ends, and one for the exit code with which all are to end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from torchkeep.cli import failures
from torchkeep.cli.progress import passing_line
from torchkeep.errors import EXIT_PREEMPTED, CheckpointProblem

try:
    import fcntl
except ImportError:  # Windows: they hear of each other's end from PyTorch
    fcntl = None  # type: ignore[assignment]

OUTCOME = "TORCHKEEP_TRAIN_OUTCOME"
"""In the environment: the file for the exit code."""
LAUNCHER = "TORCHKEEP_TRAIN_LAUNCHER"
"""In the environment: the number of the process that has started them."""
SAVING_S = 600
"""How long processes that were asked to stop may take to save."""

_AT_WORK = "at-work-"
"""What the names of files begin with that a process at work has locked."""
_LOOK_S, _PARTING_S = 0.5, 10.0
"""How often a process looks after the others, and how long it goes on when one has ended."""


def is_launched() -> bool:
    """Whether `--nproc` of another process has started this one."""
    return OUTCOME in os.environ


def look_after() -> None:
    """Have this process end when another one does, and others when it does, from here on."""
    if is_launched():
        with suppress(OSError):  # no room
            _lock_mark()
        threading.Thread(target=_look_after, daemon=True).start()


def take_leave() -> None:
    """Have the others not miss this process when it ends."""
    if is_launched():
        with suppress(OSError):
            _mark().unlink()


def leave_code(code: int) -> None:
    """Leave the exit code with which all are to end."""
    if is_launched():
        with suppress(OSError):  # there may be no room, and then the launcher sees the code
            _outcome().write_text(str(code))


def has_spoken() -> bool:
    """Whether one of them has a reason to end all, and has told it."""
    return is_launched() and _outcome().exists()


def code_left(otherwise: int) -> int:
    """Return the exit code that one of them has left, if one has."""
    with suppress(OSError, ValueError):
        return int(_outcome().read_text())
    return otherwise


def gone(what: str = "has ended, or does not answer", who: str = "another") -> CheckpointProblem:
    """Return the error that a process is gone, which is nobody's bug."""
    return CheckpointProblem(
        f"{who} process of the training {what}",
        advice="Start the command again: it goes on after the last checkpoint.",
    )


def _outcome() -> Path:
    return Path(os.environ[OUTCOME])


def _mark() -> Path:
    return _outcome().with_name(_AT_WORK + os.environ["RANK"])


def _lock_mark() -> None:
    """Make a file that is locked as long as this process lives."""
    if fcntl is not None:
        mark = _mark()
        new = mark.with_name(f"new-{mark.name}")  # nobody is to see it before it is locked
        file = os.open(new, os.O_RDWR | os.O_CREAT)  # open until the end
        fcntl.lockf(file, fcntl.LOCK_EX)
        new.rename(mark)


def _look_after() -> None:
    """End this process when it can only wait: another one has ended, or who started it is gone.

    Both know how to end by themselves, unless they are within PyTorch, waiting for who has ended.
    """
    mark, launcher = _mark(), int(os.environ[LAUNCHER])
    is_told = False
    while not _is_over(mark):
        time.sleep(_LOOK_S)
        if os.getppid() != launcher and not is_told:
            is_told = True
            os.kill(os.getpid(), signal.SIGTERM)  # as the launcher would: it saves, and ends
    time.sleep(_PARTING_S)
    # Who was asked to stop has saved, and may have much to look through and to delete.
    if code_left(failures.EXIT_DIFFERENT) == EXIT_PREEMPTED:
        time.sleep(SAVING_S - _PARTING_S)
    try:
        _tell_of_end()
    finally:
        os._exit(code_left(failures.EXIT_DIFFERENT))


def _is_over(mine: Path) -> bool:
    """Whether one of the processes has told of an end, or has ended without a word."""
    try:
        others = set(mine.parent.glob(f"{_AT_WORK}*")) - {mine}
        return has_spoken() or any(map(_has_vanished, others))
    except OSError:  # nothing can be seen
        return False


def _has_vanished(mark: Path) -> bool:
    """Whether the process that has locked a mark has ended, and not as it should."""
    try:
        with mark.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, or was just taken away
        return False
    return mark.exists()


def _tell_of_end() -> None:
    """Say that another process has ended, unless one has spoken."""
    with suppress(OSError), _outcome().open("x") as file:  # it exists, or there is no room
        sys.stderr = sys.__stderr__
        with passing_line():
            pass
        file.write(str(failures.report_any(gone())))
