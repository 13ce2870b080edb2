"""Which checkpoints to delete: a pure function of what there is and what is to be kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torchkeep.checkpointing.runs.checkpoints import Checkpoint
from torchkeep.errors import WrongArgument

Best = tuple[str, Literal["min", "max"]]
"""A metric, and whether the lowest or the highest is the best."""


def to_delete(
    checkpoints: Iterable[Checkpoint], *, keep_last: int | None = 3, keep_best: Best | None = None
) -> list[Checkpoint]:
    """Return the checkpoints to delete, oldest first.

    Kept are the newest `keep_last` (None: all) and the best one; of those at the same step only
    the newest. A damaged checkpoint counts for nothing and is left where it is, as somebody may
    want to rescue a part of it. The newest whole one, and the newest exact one, are never deleted.

    >>> from pathlib import Path
    >>> losses = [0.3, 0.1, 0.2]
    >>> rated = [Checkpoint(Path(f"{n}"), n, n, metrics={"loss": x}) for n, x in enumerate(losses)]
    >>> [item.path.name for item in to_delete(rated, keep_last=1, keep_best=("loss", "min"))]
    ['0']
    """
    whole = sorted((item for item in checkpoints if not item.problem), key=lambda item: item.serial)
    latest = sorted({item.step: item for item in whole}.values(), key=lambda item: item.serial)
    keep = {item.path for item in latest[-(keep_last or 0) :]}
    exact = [item for item in whole if not item.inexact]
    keep |= {item.path for item in (*latest[-1:], *exact[-1:])}
    if keep_best is not None and (best := best_of(latest, keep_best)) is not None:
        keep.add(best.path)
    return [item for item in whole if item.path not in keep]


def best_of(checkpoints: Iterable[Checkpoint], keep_best: Best) -> Checkpoint | None:
    """Return the whole checkpoint with the best metric, the newest of equals; None without any.

    One from the middle of an epoch has no metrics of an epoch, and is none.
    """
    metric, direction = keep_best
    sign = 1.0 if direction == "max" else -1.0
    rated = [
        (sign * item.metrics[metric], item.serial, item)
        for item in checkpoints
        if not item.problem
        and not item.batch
        and metric in item.metrics
        # NaN is not equal to itself, and is never the best.
        and item.metrics[metric] == item.metrics[metric]
    ]
    return max(rated, key=lambda entry: entry[:2])[2] if rated else None


def check_counts(**counts: int | None) -> None:
    """Raise `WrongArgument` for what is no number of steps, epochs or checkpoints."""
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise WrongArgument(
                f"{name} is {count!r}", advice="Give a number from 1 on, or None for never or all."
            )


def check_best(rule: object) -> None:
    """Raise `WrongArgument` for what is neither None nor a metric and a direction."""
    match rule:
        case None | [str(), "min" | "max"]:
            return
        case _:
            raise WrongArgument(
                f"keep_best is {rule!r}",
                advice='Give a metric and a direction: ("val_loss", "min").',
            )
