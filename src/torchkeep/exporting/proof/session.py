"""A written file, run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torchkeep
from torchkeep.errors import ProofFailed
from torchkeep.exporting.proof.wire import receive, send
from torchkeep.exporting.targets.target import Port
from torchkeep.wording import shortened

TIMEOUT_S = 900.0
"""For one answer. A runtime that hangs is ended then."""


class Session:
    """Asks a process of its own to open a file, and to run it.

    The process starts from nothing: it can't have the original's weights, modules or options, and a
    runtime that crashes takes nothing along.

    Args:
        target: the name of the target, whose runtime opens the file.
        path: the file.
        threads: how many threads the runtime may compute with.

    Raises:
        ProofFailed: the runtime can't open the file.
    """

    def __init__(self, target: str, path: Path, *, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the session)
        self._process = subprocess.Popen(  # noqa: S603 (our own module, with a path)
            [sys.executable, "-P", "-m", _CHILD, target, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads),
        )
        try:
            told, _ = self._answer()
        except BaseException:
            self.close()
            raise
        self.inputs = tuple(
            Port(name, dtype, tuple(shape)) for name, dtype, shape in told["inputs"]
        )
        self.metadata: Mapping[str, str] | None = told["metadata"]
        self.abilities: Sequence[str] = told["abilities"]

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Return the outputs of inputs, all as NumPy arrays.

        Raises:
            ProofFailed: the runtime refuses them, or has ended.
        """
        return self._ask({"do": "run"}, arrays)[1]

    def seconds(self, arrays: Sequence[Any], calls: int) -> list[float]:
        """Return how long each of so many calls took, without what it takes to send the inputs."""
        found: list[float] = self._ask({"do": "time", "calls": calls}, arrays)[0]["seconds"]
        return found

    def looked_into(self, what: str, arrays: Sequence[Any] = ()) -> dict[str, Any]:
        """Return what is inside the file, by the original's names.

        Args:
            what: one of `abilities`: `layers` for the outputs of layers, `tensors` for parameters
                and buffers.
            arrays: the inputs, for layers.
        """
        told, found = self._ask({"do": what}, arrays)
        return dict(zip(told["names"], found, strict=True))

    def _ask(
        self, question: dict[str, Any], arrays: Sequence[Any]
    ) -> tuple[dict[str, Any], list[Any]]:
        assert self._process.stdin is not None  # noqa: S101 (it was opened so)
        try:
            send(self._process.stdin, question, arrays)
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> tuple[dict[str, Any], list[Any]]:
        assert self._process.stdout is not None  # noqa: S101 (it was opened so)
        timer = threading.Timer(TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            told, arrays = receive(self._process.stdout)
        except (EOFError, ValueError):
            raise self._ended() from None
        finally:
            timer.cancel()
        if "error" in told:
            raise ProofFailed(f"its runtime can't run it: {shortened(told['error'], 500)}")
        return told, arrays

    def _ended(self) -> ProofFailed:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read()[-2000:].decode("utf-8", "replace").strip()
        last = shortened(said.splitlines()[-1], 300) if said else "it said nothing"
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return ProofFailed(f"its runtime {how}: {last}")

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


_CHILD = "torchkeep.exporting.proof.child"


def _environment(threads: int) -> dict[str, str]:
    """Return this process's environment, in which this torchkeep is the one that is imported."""
    home = str(Path(torchkeep.__file__).parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
    }
