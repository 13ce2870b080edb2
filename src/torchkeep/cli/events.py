"""What happens in a training: on a screen, and as lines of JSON for other programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.cli.text import clip, wrapped
from torchkeep.errors import SaveRefused
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.training.retraining import Event
    from torchkeep.training.settings import Settings


class Screen:
    """A bar on a terminal, and a line per epoch everywhere."""

    def __init__(self, settings: Settings) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._settings = settings
        self._console = Console(highlight=False)
        can_draw = self._console.is_terminal and not self._console.is_dumb_terminal
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            disable=not can_draw,
        )
        self._task: Any = None

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show what happened."""
        {
            "begun": self._begin,
            "step": self._advance,
            "epoch": self._end_epoch,
            "found": self._tell,
        }[event.kind](event)

    def _begin(self, event: Event) -> None:
        if event.step:
            self._console.print(f"goes on after step {event.step:,} of {event.num_steps:,}")
        self._task = self._progress.add_task(
            "",
            total=event.num_steps,
            completed=event.step,
            epoch=self._epoch(event),
            rate="",
            loss="",
        )

    def _epoch(self, event: Event) -> str:
        return f"{event.epoch + 1}/{self._settings.epochs}"

    def _advance(self, event: Event) -> None:
        speed = self._progress.tasks[0].speed
        images = self._settings.batch_size * self._settings.accumulate
        rate = "" if speed is None else f"{speed * images:,.0f} images/s"
        self._progress.update(
            self._task,
            completed=event.step,
            loss=f"loss {event.values['loss']:.4f}",
            rate=rate,
            epoch=self._epoch(event),
        )

    def _tell(self, event: Event) -> None:
        if event.finding is not None:
            item = event.finding
            line = f"{item.severity:<9} {clip(item.text, 400)}. {printable(item.advice)}"
            self._console.print(
                wrapped(line.rstrip(), sys.stdout, indent=10), markup=False, soft_wrap=True
            )

    def _end_epoch(self, event: Event) -> None:
        row = event.values
        self._console.print(
            f"epoch {int(row['epoch']) + 1:>3} of {self._settings.epochs}   "
            f"loss {row['loss']:.4f}   val_loss {row['val_loss']:.4f}   "
            f"accuracy {row['val_accuracy']:.2%}"
        )


@contextmanager
def events_written(path: Path | None) -> Iterator[Callable[[Event], None]]:
    """Yield what appends an event to a file, whole and at once.

    Raises:
        SaveRefused: it can't be written.
    """
    if path is None:
        yield lambda _: None
        return
    from torchkeep.training.records.history import json_line

    with _refusing(path):
        file = path.open("ab", buffering=0)
    with file:

        def write(event: Event) -> None:
            row = {"event": event.kind, "step": event.step, "epoch": event.epoch}
            row |= {"batch": event.batch, **event.values}
            if event.finding is not None:
                row |= event.finding.to_json()
            with _refusing(path):
                file.write(json_line(row).encode())

        yield write


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveRefused(
            f"{printable(str(path))}: the events can't be written there ({error.strerror})",
            advice="Choose another file with --events.",
        ) from None
