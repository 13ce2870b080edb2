"""A training run that tells what it saves, in order to be killed at it.

Everything it tells goes to a log outside the run's folder, and is synced before the run goes on:

    announced 3 5f1c...     after the third step: what its checkpoint has to hold
    done 3                  that checkpoint is written; from now on nothing may take it away

As a program it is a server: PyTorch is imported once, and each line on its standard input makes a
child that trains.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchkeep.checkpointing import Checkpointer
from torchkeep.errors import TorchkeepError
from torchkeep.files import direct
from torchkeep.formats.own.manifest import checkpoint_step
from torchkeep.writing import safetensors

STEPS_PER_EPOCH = 64

Kind = Literal["folder", "pth", "shared"]
"""What a checkpoint is: a folder, one file, or a folder that shares a file with the one before."""


@dataclass(frozen=True)
class Given:
    """What a run is told."""

    folder: str
    log: str
    num_steps: int = 3
    background: bool = True
    durable: bool = True
    width: int = 96
    kind: Kind = "folder"
    most_file_nbytes: int = 0


WAYS_OF_SAVING: dict[str, dict[str, Any]] = {
    "background": {},
    "foreground": {"background": False},
    "pth": {"kind": "pth"},
    "shared": {"kind": "shared"},
}
"""The runs that differ in the calls by which they save, as what a `Given` has then."""


class Trainee:
    """A little model with what belongs to it; always the same."""

    def __init__(self, width: int = 96, kind: Kind = "folder") -> None:
        self.kind = kind
        # One parameter is larger than what a snapshot copies at once.
        generator = torch.Generator().manual_seed(7)
        trained = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        self.model = nn.ModuleDict({"trained": trained})
        if kind == "shared":  # a frozen parameter of 1 MiB has a file of its own
            self.model["frozen"] = nn.Linear(512, 512, bias=False).requires_grad_(False)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer = torch.optim.AdamW(trained.parameters(), lr=0.01)
        inputs = torch.randn(2 * STEPS_PER_EPOCH, width, generator=generator)
        self.loader = DataLoader(TensorDataset(inputs), 2, generator=generator)

    def checkpointer(self, folder: str | Path, **options: Any) -> Checkpointer:
        """Return one that keeps a single checkpoint, the hardest case."""
        form = "pth" if self.kind == "pth" else "folder"
        options = {"keep_last": 1, "background": True, "format": form} | options
        return Checkpointer(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            seed=7,
            every_steps=1 if options["background"] else None,
            every_epochs=None,
            **options,
        )

    def step(self, inputs: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.model["trained"](inputs).square().mean().backward()
        self.optimizer.step()

    def content(self) -> str:
        """Return a digest of all that is trained, by a way that the library has no part in."""
        digest = hashlib.sha256()
        moments = self.optimizer.state_dict()["state"]
        for name, tensors in (("model", self.model.state_dict()), *sorted(moments.items())):
            for key, tensor in sorted(tensors.items()):
                digest.update(f"{name} {key} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


# Not every system has these.
_WRITE = getattr(os, "writev", lambda fd, parts: os.write(fd, b"".join(parts)))
_SYNC = getattr(os, "fdatasync", os.fsync)


class Log:
    """What a run has told; it is written by calls that nothing else here makes."""

    def __init__(self, path: str | Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._last_done = ""

    def announce(self, step: int, content: str) -> None:
        self._say(f"announced {step} {content}\n")

    def done(self, checkpoint: Path | None) -> None:
        """Tell that a checkpoint is written, once; None for none."""
        if checkpoint is not None and checkpoint.name != self._last_done:
            self._last_done = checkpoint.name
            self._say(f"done {checkpoint_step(checkpoint)}\n")

    def _say(self, line: str) -> None:
        _WRITE(self._fd, [line.encode()])
        _SYNC(self._fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def train(given: Given) -> list[str]:
    """Train up to a step, and return the errors that the run met.

    Where saving is in the background the first one ends it: the loop does not know which save it
    is of. Otherwise the run goes on, and opens its folder anew if need be.
    """
    _take_little_for_large()
    with Log(given.log) as log:
        return _train_on(given, log)


def _take_little_for_large() -> None:
    """Have copies go to the disk from where they lie, as those of larger models do."""
    direct._LARGE_NBYTES = safetensors.GROUP_NBYTES = 4096


def _train_on(given: Given, log: Log) -> list[str]:
    refusals: list[str] = []
    while not _train(given, log, refusals):
        pass
    return refusals


_MOST_REFUSALS = 6  # more than one that happens once can cause in all threads


def _train(given: Given, log: Log, refusals: list[str]) -> bool:
    """Open the run and train to the end of it; return whether there is nothing more to do."""
    trainee = Trainee(given.width, given.kind)
    ckpt = trainee.checkpointer(given.folder, background=given.background, durable=given.durable)
    try:
        with ckpt:
            while not _go_on(given, trainee, ckpt, log, refusals):
                pass
        log.done(ckpt.last_saved)
    except TorchkeepError as error:
        _note(error, refusals)
        return given.background
    return True


def _go_on(
    given: Given, trainee: Trainee, ckpt: Checkpointer, log: Log, refusals: list[str]
) -> bool:
    """Train to the last step; return False after an error that the loop can go on from."""
    if ckpt.num_steps >= given.num_steps:
        return True
    try:
        for _ in ckpt.epochs(1_000_000):
            for (inputs,) in ckpt.batches(trainee.loader):
                log.done(ckpt.last_saved)
                trainee.step(inputs)
                log.announce(ckpt.num_steps + 1, trainee.content())
                ckpt.step()
                if not given.background:
                    log.done(ckpt.save())
                if ckpt.num_steps >= given.num_steps:
                    return True
    except TorchkeepError as error:
        if given.background:
            raise
        _note(error, refusals)
        return False
    return True


def _note(error: TorchkeepError, refusals: list[str]) -> None:
    refusals.append(f"{type(error).__name__}: {error}")
    if len(refusals) > _MOST_REFUSALS:
        raise RuntimeError("; ".join(refusals))


# --- The server --------------------------------------------------------------------------------


def outcome(given: Given, log: Log) -> dict[str, object]:
    """Train, and return what came of it."""
    if given.most_file_nbytes:
        import resource  # only here: Windows has none

        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.most_file_nbytes, hard))
    try:
        return {"refusals": _train_on(given, log)}
    except BaseException as error:
        return {"refusals": [], "raised": f"{type(error).__name__}: {error}"}


def _run_child(given: Given, wait: int, answer: int) -> None:
    log = Log(given.log)
    os.writev(answer, [b"\n"])  # from here on the calls are counted
    os.read(wait, 1)
    text = json.dumps(outcome(given, log))
    os.writev(answer, [text.encode()])
    os._exit(0)


def serve() -> None:
    """Start a child for each line, let it go at the next one, and tell what came of it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # What is imported or looked up once is no part of a save.
        for kind in get_args(Kind):
            given = Given(f"{folder}/{kind}", f"{folder}/log-{kind}", kind=kind)
            train(given)
            train(replace(given, num_steps=4, background=False))
    for line in sys.stdin:
        given = Given(**json.loads(line))
        wait, go = os.pipe()
        result, answer = os.pipe()
        child = os.fork()
        if not child:
            _run_child(given, wait, answer)
        os.close(answer)
        os.read(result, 1)  # else the log may be refused that tells of the run
        print(child, flush=True)
        sys.stdin.readline()
        os.write(go, b"x")
        _, status = os.waitpid(child, 0)
        killed = {"refusals": [], "killed": True}
        print(json.dumps(killed) if os.WIFSIGNALED(status) else _read_all(result), flush=True)
        for fd in (wait, go, result):
            os.close(fd)


def _read_all(fd: int) -> str:
    data = b""
    while part := os.read(fd, 1 << 16):
        data += part
    return data.decode()


if __name__ == "__main__":
    serve()
