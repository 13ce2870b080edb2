"""What the command line says, and exits with, when something does not work."""

from __future__ import annotations

import errno
import os
import sys

from torchkeep.cli.text import wrapped
from torchkeep.errors import EXIT_PREEMPTED, FileProblem, TorchkeepError
from torchkeep.wording import printable

EXIT_DIFFERENT = 1
EXIT_USAGE = 2
EXIT_FILE = 3
EXIT_PLACE = 8
EXIT_NOT_DATA_ONLY = 13
EXIT_INCOMPLETE = 14
EXIT_NOT_EXPORTED = 15
EXIT_BUG = 70
EXIT_OUTPUT = 74
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141

EXIT_CODES = {
    0: "done",
    EXIT_DIFFERENT: "a claim is not true, two files differ, or a training can't go on",
    EXIT_USAGE: "the command line is wrong",
    EXIT_FILE: "a file is missing or may not be read",
    4: "the file is no model file: a web page, a Git LFS pointer, nothing, ...",
    5: "the file is damaged",
    6: "reading it would take more than a limit allows",
    7: "the file is recognised and can't be read",
    EXIT_PLACE: "something can't be saved as data, or in that place",
    9: "the file and the model differ",
    10: "a run can't be saved or resumed",
    11: "an optional dependency is not installed",
    12: "a call's argument fits nothing",
    EXIT_NOT_DATA_ONLY: "a scanned file is not data-only",
    EXIT_INCOMPLETE: "not all of it could be verified, and what was is whole",
    EXIT_NOT_EXPORTED: "a network can't be written for a target",
    EXIT_BUG: "a bug in torchkeep",
    EXIT_OUTPUT: "the output can't be written",
    EXIT_PREEMPTED: "a training was asked to stop, and is saved",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_PIPE_CLOSED: "who reads the output has stopped",
}
"""Every exit code, and what it says. 1 and 3 to 12 are those of `torchkeep.errors`."""


def report_any(error: Exception | KeyboardInterrupt) -> int:
    """Say what has ended a verb, and return the exit code."""
    if isinstance(error, TorchkeepError):
        return report(error)
    if isinstance(error, KeyboardInterrupt):
        return report_interrupt()
    return report_system(error) if isinstance(error, OSError) else report_bug(error)


def report(error: TorchkeepError) -> int:
    """Say what went wrong, and return the exit code.

    What a file is called may try to look like another message, so it is escaped. Only errors that
    are a table by nature, such as a mismatch of file and model, have several lines.
    """
    text = str(error).replace("pass overwrite=True", "add --overwrite")
    lines = [text] if isinstance(error, FileProblem) else text.split("\n")
    _say("\n".join(printable(line) for line in lines))
    return error.exit_code


def report_interrupt() -> int:
    """Say that the user stopped the program, and return the exit code."""
    _say("interrupted")
    return EXIT_INTERRUPTED


def report_system(error: OSError) -> int:
    """Say what the system has refused, and return the exit code.

    Python names the file in what it raises, unless that is open already, as stdout is.
    """
    if error.filename is None:
        return _report_output(error) if error.errno in _OF_OUTPUT else report_bug(error)
    name = error.filename
    _say(
        f"{printable(os.fsdecode(name) if isinstance(name, str | bytes) else str(name))}: "
        f"{printable(error.strerror or str(error))}"
    )
    return EXIT_PLACE if error.errno in _NO_ROOM else EXIT_FILE


_NO_ROOM = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_OF_OUTPUT = {*_NO_ROOM, errno.EPIPE, errno.EIO, errno.EBADF, errno.EINVAL}  # Windows: EINVAL


def _report_output(error: OSError) -> int:
    """Say that the output can't be written, and return the exit code.

    A closed pipe (`torchkeep inspect FILE | head`) is no news: the reader has seen enough.
    """
    # Python flushes stdout once more at exit, and would complain about the same failure again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return EXIT_PIPE_CLOSED
    _say(f"the output can't be written ({printable(error.strerror or str(error))})")
    return EXIT_OUTPUT


def report_bug(error: Exception) -> int:
    """Say that torchkeep is to blame, and return the exit code."""
    if os.environ.get("TORCHKEEP_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    what = printable(f"{type(error).__name__}: {error}")
    _say(
        f"this is a bug in torchkeep ({what}). "
        "Set TORCHKEEP_TRACEBACK=1 to see where it is, and please report that."
    )
    return EXIT_BUG


def warn(text: str) -> None:
    """Say something beside the results."""
    _say(printable(text))


def _say(text: str) -> None:
    lines = f"torchkeep: {text}".split("\n")
    sys.stderr.writelines(f"{wrapped(line, sys.stderr, indent=2)}\n" for line in lines)
