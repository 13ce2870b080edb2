"""Run a module, and end with all its workers when the process that started it is gone.

    python -m torchkeep.demo.lifeline MODULE [OPTION ...]

The starter holds the other end of our standard input. A SIGKILL leaves it no time to tell us, but
the system closes what it had open, and we see the end of the input. Works without PyTorch.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any


def start(module: str, options: Sequence[str], **popen: Any) -> subprocess.Popen[str]:
    """Start `python -m module` with its lifeline, in a process group of its own."""
    command = [sys.executable, "-m", __name__, module, *options]
    return subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
        command, stdin=subprocess.PIPE, text=True, start_new_session=True, **popen
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process that `start` returned, and the workers that it started."""
    if hasattr(os, "killpg") and process.poll() is None:
        # Its workers are in its group. macOS refuses if all of them have ended meanwhile.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def main() -> None:
    """Watch the lifeline, and run the module that is named."""
    sys.argv = sys.argv[1:]
    threading.Thread(target=_end_with_starter, args=(os.dup(0),), daemon=True).start()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_starter(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
