"""Which checkpoints to delete: a pure function of what there is and what is to be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Best = tuple[str, Literal["min", "max"]]
"""A metric, and whether the lowest or the highest is the best."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the rule needs to know about a checkpoint."""

    name: str
    """Its folder's name."""
    step: int
    """Its step. Of two at the same step the later one supersedes the earlier."""
    serial: int
    """Its number in the order of saving."""
    is_whole: bool
    """Whether it was found undamaged."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Its metrics by name."""


def doomed(
    checkpoints: Iterable[Kept], *, keep_last: int | None = 3, keep_best: Best | None = None
) -> list[str]:
    """Return the names of the checkpoints to delete, oldest first.

    Kept are the newest `keep_last` (None: all) and the best one; of those at the same step only
    the newest. A damaged checkpoint counts for nothing and is left where it is, as somebody may
    want to rescue a part of it. The newest whole one is never deleted.

    >>> rated = [Kept("a", 1, 1, True, {"loss": 0.3}), Kept("b", 2, 2, True, {"loss": 0.1})]
    >>> doomed([*rated, Kept("c", 3, 3, True)], keep_last=1, keep_best=("loss", "min"))
    ['a']
    """
    whole = sorted((item for item in checkpoints if item.is_whole), key=lambda item: item.serial)
    latest = sorted({item.step: item for item in whole}.values(), key=lambda item: item.serial)
    keep = set() if keep_last == 0 else {item.name for item in latest[-(keep_last or 0) :]}
    keep |= {item.name for item in latest[-1:]}
    if keep_best is not None and (best := best_of(latest, keep_best)) is not None:
        keep.add(best.name)
    return [item.name for item in whole if item.name not in keep]


def best_of(checkpoints: Iterable[Kept], rule: Best) -> Kept | None:
    """Return the whole checkpoint with the best metric, the newest of equals; None without any."""
    metric, direction = rule
    sign = 1.0 if direction == "max" else -1.0
    rated = [
        (sign * item.metrics[metric], item.serial, item)
        for item in checkpoints
        # NaN is not equal to itself, and is never the best.
        if item.is_whole and metric in item.metrics and item.metrics[metric] == item.metrics[metric]
    ]
    return max(rated, key=lambda entry: entry[:2])[2] if rated else None
