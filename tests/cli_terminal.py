"""A terminal for the command line, as wide as the narrowest that people use."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios


def in_terminal(*arguments: str) -> str:
    """Return what a terminal of 80 columns gets of `torchkeep` with these arguments."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "torchkeep", *arguments]
    with os.fdopen(theirs, "wb", buffering=0) as terminal:
        child = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    output = b""
    with contextlib.suppress(OSError):  # how Linux tells that the other end is closed
        while piece := os.read(ours, 65536):
            output += piece
    child.wait()
    os.close(ours)
    return output.decode().replace("\r\n", "\n")
