"""The process that runs a written file: it has the file and its runtime, and nothing else.

    python -m torchkeep.exporting.proof.child TARGET FILE THREADS

It answers one message after the other on its standard output: `run` gives the outputs of arrays,
`time` the seconds that each of so many calls took, `layers` the outputs of the layers, `tensors`
the parameters and buffers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from torchkeep.exporting.proof.wire import receive, send
from torchkeep.exporting.targets.target import Opened


def main(target: str, path: str, threads: str) -> None:
    """Open the file, and answer until nobody asks any more."""
    # What a runtime prints goes to standard error, so that no answer is broken by it.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        module = import_module(f"torchkeep.exporting.targets.{target}")
        opened: Opened = module.open_file(Path(path), threads=int(threads))
    except Exception as error:  # the runtime's, of any kind
        send(answers, {"error": _said(error)})
        return
    ports = [[port.name, port.dtype, list(port.shape)] for port in opened.inputs]
    metadata = None if opened.metadata is None else dict(opened.metadata)
    send(answers, {"inputs": ports, "metadata": metadata, "abilities": _abilities(opened)})
    while True:
        try:
            question, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return
        _answer(answers, opened, question, arrays)


def _answer(
    answers: IO[bytes], opened: Opened, question: dict[str, Any], arrays: list[Any]
) -> None:
    try:
        if question["do"] == "run":
            send(answers, {}, opened.run(arrays))
        elif question["do"] == "time":
            send(answers, {"seconds": list(_seconds(opened, arrays, question["calls"]))})
        else:
            found = _looked_into(opened, question["do"], arrays)
            send(answers, {"names": list(found)}, list(found.values()))
    except Exception as error:  # the runtime's, of any kind
        send(answers, {"error": _said(error)})


def _abilities(opened: Opened) -> list[str]:
    found = (("layers", opened.layers), ("tensors", opened.tensors))
    return [name for name, ability in found if ability is not None]


def _looked_into(opened: Opened, what: str, arrays: list[Any]) -> Mapping[str, Any]:
    if what == "layers" and opened.layers is not None:
        return opened.layers(arrays)
    if what == "tensors" and opened.tensors is not None:
        return opened.tensors()
    raise ValueError(f"it has no {what}")


def _seconds(opened: Opened, arrays: list[Any], calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        begin = time.perf_counter()
        opened.run(arrays)
        found.append(time.perf_counter() - begin)
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # all is answered; to tear a runtime down takes a second
