"""Errors of a loader's worker processes, as if there were none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torchkeep.errors import TorchkeepError


@contextmanager
def as_without_workers() -> Iterator[None]:
    """Raise what torchkeep has raised in a worker of a loader with the message that it had there.

    PyTorch makes an error of the same kind, whose message is the worker's traceback.
    Source: `ExceptionWrapper` in torch/_utils.py.
    """
    try:
        yield
    except TorchkeepError as error:
        kind = f"{type(error).__module__}.{type(error).__qualname__}: "
        lines = error.problem.splitlines()
        if not lines or not lines[0].startswith(f"Caught {type(error).__name__} in DataLoader"):
            raise
        told = [line.removeprefix(kind) for line in lines if line.startswith(kind)]
        if not told:
            raise
        raise type(error)(told[-1]) from None
