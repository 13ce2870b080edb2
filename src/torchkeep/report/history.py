"""What the epochs measured, sorted into the panels that are drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Literal

from torchkeep.report.amounts import as_float
from torchkeep.report.data import Epoch

Role = Literal["training", "validation", "other"]

MOST_SERIES = 8
"""Curves in one panel; what is beyond stands in the table alone."""

_SPLITS: dict[str, tuple[Role, str]] = {
    "train": ("training", "training"),
    "training": ("training", "training"),
    "val": ("validation", "validation"),
    "valid": ("validation", "validation"),
    "validation": ("validation", "validation"),
    "eval": ("validation", "validation"),
    "test": ("other", "test"),
}
_WORDS = {
    "lr": "Learning rate",
    "learning_rate": "Learning rate",
    "f1": "F1",
    "auc": "AUC",
    "map": "mAP",
    "iou": "IoU",
    "miou": "mIoU",
}


@dataclass(frozen=True, slots=True)
class Series:
    """One curve."""

    name: str
    """Its name in the history."""
    label: str
    """What the legend calls it."""
    role: Role
    """What it was measured on."""
    values: tuple[float | None, ...]
    """A value per epoch; None where there is none. It may be NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share their axes."""

    title: str
    """What they measure."""
    series: tuple[Series, ...]
    """At most `MOST_SERIES`."""
    may_log: bool
    """Whether a log scale may help: for losses and learning rates."""
    num_left_out: int = 0
    """Curves that found no place."""


def epoch_numbers(history: Sequence[Epoch]) -> list[float]:
    """Return each epoch's number: its `epoch`, or its place counted from 1 if these don't rise."""
    given = [_number(epoch.get("epoch")) for epoch in history]
    known = [number for number in given if number is not None and math.isfinite(number)]
    if len(known) == len(history) and all(a < b for a, b in pairwise(known)):
        return known
    return [float(place) for place in range(1, len(history) + 1)]


def columns(history: Sequence[Epoch]) -> list[str]:
    """Return the names that occur in any epoch but `epoch`, in the order in which they came."""
    names = dict.fromkeys(name for epoch in history for name in epoch if name != "epoch")
    return sorted(names, key=lambda name: (_rank(_base(name)), _base(name) == "seconds"))


def panels(history: Sequence[Epoch]) -> list[Panel]:
    """Return the panels: losses first, then the other metrics, then learning rates."""
    grouped: dict[str, list[str]] = {}
    for name in columns(history):
        if name != "seconds" and any(_number(epoch.get(name)) is not None for epoch in history):
            grouped.setdefault(_base(name), []).append(name)
    return [_panel(base, names, history) for base, names in grouped.items()]


def _panel(base: str, names: list[str], history: Sequence[Epoch]) -> Panel:
    found = [_series(name, base, len(names), history) for name in names]
    labels = [series.label for series in found]
    if len(set(labels)) < len(labels):
        found = [Series(one.name, one.name, "other", one.values) for one in found]
    found.sort(key=lambda one: ("training", "validation", "other").index(one.role))
    return Panel(
        title=_WORDS.get(base, base[:1].upper() + base[1:].replace("_", " ")),
        series=tuple(found[:MOST_SERIES]),
        may_log=_rank(base) != 1,
        num_left_out=max(0, len(found) - MOST_SERIES),
    )


def _series(name: str, base: str, num_siblings: int, history: Sequence[Epoch]) -> Series:
    values = tuple(_number(epoch.get(name)) for epoch in history)
    role, label = _SPLITS.get(_split(name), ("other", name))
    if not _split(name) and base != "lr" and (num_siblings > 1 or base == "loss"):
        role, label = "training", "training"
    return Series(name, label, role, values)


def _split(name: str) -> str:
    first = re.split(r"[_/.]", name, maxsplit=1)[0]
    return first if first in _SPLITS and first != name else ""


def _base(name: str) -> str:
    """Return what a value measures, whatever it was measured on."""
    split = _split(name)
    rest = name[len(split) + 1 :] if split else name
    if re.match(r"(lr|learning_rate)\b|lr_", rest) or rest.endswith(("_lr", "/lr")):
        return "lr"
    return rest


def _rank(base: str) -> int:
    """Return where a panel stands: losses, metrics, learning rates."""
    if base == "lr":
        return 2
    return 0 if base == "loss" or base.endswith(("_loss", "/loss")) else 1


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return as_float(value)
