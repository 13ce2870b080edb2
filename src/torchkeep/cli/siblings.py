"""What the processes that `--nproc` has started know of each other's end.

A thread of each looks whether another one has ended, or the one that started them: who is waiting
within PyTorch for somebody that never comes hears no signal, and NCCL waits for ten minutes.

They meet in a folder of the one that has started them: a file per process that is at work, and one
for the exit code, by the first that has a reason to end all.
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

OUTCOME = "TORCHKEEP_TRAIN_OUTCOME"
"""In the environment: the file for the exit code."""
LAUNCHER = "TORCHKEEP_TRAIN_LAUNCHER"
"""In the environment: the number of the process that has started them."""
SAVING_S = 600
"""How long processes that were asked to stop may take to save."""

_AT_WORK = "at-work-"
"""What the names of files begin with that have the number of a process at work."""
_LOOK_S, _PARTING_S = 0.5, 10.0
"""How often a process looks after the others, and how long it goes on when one has ended."""


def is_launched() -> bool:
    """Whether `--nproc` of another process has started this one."""
    return OUTCOME in os.environ


def look_after() -> None:
    """Have this process end when another one does, and others when it does, from here on."""
    with suppress(OSError):  # no room: then they hear of its end from PyTorch
        _mark().write_text(str(os.getpid()))
    threading.Thread(target=_look_after, daemon=True).start()


def part() -> None:
    """Have the others not miss this process when it ends."""
    if is_launched():
        _mark().unlink(missing_ok=True)


def leave(code: int) -> None:
    """Leave the exit code with which all are to end."""
    if is_launched():
        with suppress(OSError):  # there may be no room, and then the launcher sees the code
            _outcome().write_text(str(code))


def code_in(outcome: Path, otherwise: int) -> int:
    """Return the exit code that one of them has left, if one has."""
    with suppress(OSError, ValueError):
        return int(outcome.read_text())
    return otherwise


def gone() -> CheckpointProblem:
    """Return the error that another process is gone, which is nobody's bug."""
    return CheckpointProblem(
        "another process of the training has ended, or does not answer",
        advice="Start the command again: it goes on after the last checkpoint.",
    )


def _outcome() -> Path:
    return Path(os.environ[OUTCOME])


def _mark() -> Path:
    return _outcome().with_name(_AT_WORK + os.environ["RANK"])


def _look_after() -> None:
    """End this process when it can only wait: another one has ended, or who started it is gone.

    Both know how to end by themselves, unless they are within PyTorch, waiting for who has ended.
    """
    outcome, launcher = _outcome(), int(os.environ[LAUNCHER])
    is_told = False
    while not (outcome.exists() or _has_one_vanished(outcome.parent)):
        time.sleep(_LOOK_S)
        if os.getppid() != launcher and not is_told:
            is_told = True
            os.kill(os.getpid(), signal.SIGTERM)  # as the launcher would: it saves, and ends
    code = code_in(outcome, failures.EXIT_DIFFERENT)
    # Who was asked to stop has saved, and may have much to look through and to delete.
    time.sleep(SAVING_S if code == EXIT_PREEMPTED else _PARTING_S)
    _tell_of_end(outcome)
    os._exit(code_in(outcome, code))


def _has_one_vanished(folder: Path) -> bool:
    return any(_has_vanished(mark) for mark in folder.glob(f"{_AT_WORK}*"))


def _has_vanished(mark: Path) -> bool:
    """Whether the process that has left a mark has ended, and not as it should."""
    try:
        os.kill(int(mark.read_text()), 0)
    except ProcessLookupError:
        return mark.exists()
    except (OSError, ValueError):  # it is being written, or was just taken away
        pass
    return False


def _tell_of_end(outcome: Path) -> None:
    """Say that another process has ended, unless one has spoken."""
    with suppress(OSError), outcome.open("x") as file:  # it exists, or there is no room
        sys.stderr = sys.__stderr__
        with passing_line():
            pass
        file.write(str(failures.report_any(gone())))
