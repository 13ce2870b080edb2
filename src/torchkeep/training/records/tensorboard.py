"""A run as a log that TensorBoard shows, with no step in it twice."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from torchkeep.errors import MissingExtra

if TYPE_CHECKING:
    from torchkeep.training.retraining import Event

LOG_FOLDER = "tensorboard"
_FILES = "events.out.tfevents.*"
_FLUSH_S = 20


def require_tensorboard() -> None:
    """Make sure that a log can be written.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """
    if sys.modules.get("tensorboard", True) is None or find_spec("tensorboard") is None:
        raise MissingExtra.for_modules("--tensorboard", ["tensorboard"], "tensorboard")


@contextmanager
def event_log(
    folder: Path, optimizer: Optimizer, step: int, rows: Iterable[Mapping[str, float]]
) -> Iterator[Callable[[Event], None]]:
    """Yield what writes events of a training into a log.

    A step's `loss` stands at the number of steps before it, and an epoch's `val_loss` and so on at
    those that were finished by then. `lr` is the highest rate, `lr/NAME` that of each group. What
    an earlier process wrote beyond the first step is void, and TensorBoard leaves it out.

    Args:
        folder: the log's.
        optimizer: whose groups have the rates.
        step: the finished steps, where the run goes on.
        rows: of the epochs that are finished; they are written if they are not in the log.
    """
    log = _Log(folder, optimizer, step, list(rows))
    try:
        yield log.write
    finally:
        log.close()


class _Log:
    def __init__(
        self, folder: Path, optimizer: Optimizer, step: int, rows: list[Mapping[str, float]]
    ) -> None:
        self._folder, self._optimizer, self._step, self._rows = folder, optimizer, step, rows
        self._writer: Any = None

    def write(self, event: Event) -> None:
        if event.kind not in ("step", "epoch"):
            return
        if self._writer is None:
            self._open()
        if event.kind == "step":
            self._writer.add_scalar("loss", event.values["loss"], event.step - 1)
        else:
            self._write_epoch(event.values)
            self._writer.flush()

    def _open(self) -> None:
        has_log = any(self._folder.glob(_FILES))
        _wait_for_a_later_name(self._folder)
        made = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        purge = self._step if has_log else None
        self._writer = made(str(self._folder), purge_step=purge, flush_secs=_FLUSH_S)
        for row in self._rows:
            # The row of an epoch that ended with this very step has just become void.
            if not has_log or row["step"] >= self._step:
                self._write_epoch(row)

    def _write_epoch(self, row: Mapping[str, float]) -> None:
        step = int(row["step"])
        told = {name: x for name, x in row.items() if name not in ("epoch", "step", "loss")}
        if step >= self._step:  # what the groups had before is not known
            groups = self._optimizer.param_groups
            told |= {f"lr/{_tag(group['name'])}": group["lr"] for group in groups}
        for name, value in told.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _tag(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait for the next second if a file was begun in this one: they are read in its order."""
    begun = (path.name.split(".")[3] for path in folder.glob(_FILES))
    now = time.time()
    if any(stamp.isdecimal() and int(stamp) == int(now) for stamp in begun):
        time.sleep(1 - now % 1 + 0.01)
