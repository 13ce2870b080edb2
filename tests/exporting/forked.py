"""Processes that run a written file, forked from one that has loaded PyTorch and nothing else.

To load PyTorch takes longer than all that most tests do with it. What is forked is as fresh: it
has the runtime, and nothing of the process that tests. The real start is in `proof/test_session.py`
and in the tests of the command line and of the documentation.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

RUNTIMES = ("pt2", "torchscript", "executorch")
"""Targets whose runtime is PyTorch, or needs it."""

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "torch.export.pt2_archive._package",
        "torchkeep.exporting.targets.arrays",
        "torchkeep.exporting.proof.child",
    ]
)


class Forked:
    """A process with what a session asks of `subprocess.Popen`.

    Args:
        words: the target, the file and the number of threads.
        stderr: where its standard error goes.
    """

    def __init__(self, words: list[str], stderr: BinaryIO) -> None:
        answers, out = os.pipe()
        questions, ask = os.pipe()
        ends = [Connection(questions), Connection(out), Connection(os.dup(stderr.fileno()))]
        self._process = _FORKING.Process(target=_main, args=(words, *ends))
        self._process.start()
        for end in ends:
            end.close()
        self.stdin, self.stdout = os.fdopen(ask, "wb"), os.fdopen(answers, "rb")
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired([], timeout or 0.0)
        return self._process.exitcode


def popen(command: list[str], *, stderr: BinaryIO, **how: Any) -> Any:
    """Start what a session starts: forked where its runtime is PyTorch."""
    words = command[-3:]
    if words[0] in RUNTIMES:
        return Forked(words, stderr)
    return subprocess.Popen(command, stderr=stderr, **how)


def _main(words: list[str], *ends: Connection) -> None:
    from torchkeep.exporting.proof import child

    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    child.main(*words)
