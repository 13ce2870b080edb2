"""Processes that are forked from one that has loaded PyTorch and nothing else.

To load PyTorch takes longer than all that most programs of the tests do with it. What is forked is
as fresh: it has nothing of the process that tests. Real starts are tested by `tests/cli`, and by
`tests/exporting/proof/test_session.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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

    _put_in_place(ends)
    sys.stdin = os.fdopen(0, "r", closefd=False)
    child.main(*words)


def output_of(words: Sequence[str]) -> str:
    """Return what the command `torchkeep WORDS` writes to both streams, in this folder."""
    with tempfile.TemporaryFile() as file:
        streams = [Connection(os.dup(file.fileno())) for _ in range(2)]
        process = _FORKING.Process(target=_command, args=(list(words), *streams))
        process.start()
        for stream in streams:
            stream.close()
        process.join()
        file.seek(0)
        return file.read().decode()


def _command(words: list[str], *streams: Connection) -> None:
    from torchkeep.cli import main

    _put_in_place(streams, first=1)
    sys.exit(main(words))


def _put_in_place(ends: Sequence[Connection], first: int = 0) -> None:
    """Make these the standard streams, from a number on."""
    for number, end in enumerate(ends, first):
        os.dup2(end.fileno(), number)
