"""The demo's child processes: started, watched, killed, and their output shown."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from torchkeep.demo import lifeline
from torchkeep.demo.child import events
from torchkeep.errors import ProofFailed

POLL_S = 0.005
_LINE_START = ControlType.CARRIAGE_RETURN
_ERASE_IN_LINE = ControlType.ERASE_IN_LINE
_SHOW_CURSOR = ControlType.SHOW_CURSOR


def run_child(module: str, options: Sequence[str], report: Path, console: Console) -> None:
    """Run `python -m module` to its end. What it writes to stderr goes beside its report.

    Raises:
        ProofFailed: it ended with an error.
    """
    with _child(module, options, report, console) as process:
        status = process.wait()
    if status != 0:
        raise _failed(module, status, report, console)


def kill_child_when(
    wanted: Callable[[dict[str, Any]], bool],
    module: str,
    options: Sequence[str],
    report: Path,
    console: Console,
) -> int:
    """Run `python -m module`, kill it as soon as it reports a wanted event; return its status.

    Raises:
        ProofFailed: it ended by itself.
    """
    with _child(module, options, report, console) as process:
        while not any(wanted(event) for event in events(report)):
            if process.poll() is not None:
                raise _failed(module, process.returncode, report, console)
            time.sleep(POLL_S)
        lifeline.kill(process)
        status = process.wait()
    # It died while it drew its progress bar. On anything but a terminal this does nothing.
    console.control(Control(_LINE_START, (_ERASE_IN_LINE, 2), _SHOW_CURSOR))
    return status


@contextlib.contextmanager
def _child(
    module: str, options: Sequence[str], report: Path, console: Console
) -> Iterator[subprocess.Popen[str]]:
    """Start a child that draws on our terminal, or else whose lines we print as they come."""
    draws = console.is_terminal and console.file is sys.stdout
    with _log_of(report).open("a", encoding="utf-8") as log:
        process = lifeline.start(
            module, options, stdout=None if draws else subprocess.PIPE, stderr=log
        )
    relay = threading.Thread(target=_relay, args=(process, console), daemon=True)
    relay.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            lifeline.kill(process)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
        relay.join(timeout=1)


def _relay(process: subprocess.Popen[str], console: Console) -> None:
    if process.stdout is not None:
        with process.stdout:
            for line in process.stdout:
                for part in Text(line.rstrip("\n")).wrap(console, console.width):
                    part.rstrip()
                    console.print(part, soft_wrap=True)


def _log_of(report: Path) -> Path:
    return report.with_suffix(".log")


def _failed(module: str, status: int, report: Path, console: Console) -> ProofFailed:
    said = _log_of(report).read_text(encoding="utf-8")
    console.print(Text(said), soft_wrap=True)
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return ProofFailed(
        f"the child process {module} ended with {how}",
        advice="What it said stands above this line.",
    )
