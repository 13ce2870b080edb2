"""How a loss went while the learning rate grew, on a screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import log10
from typing import TYPE_CHECKING

from torchkeep.cli.checkpoints import write_lines
from torchkeep.showing import table

if TYPE_CHECKING:
    from torchkeep.training.diagnosis import RateCurve

_WIDTH = 40
"""Of the longest bar."""
_PER_DECADE = 3
"""Rows of a table that is no longer than a screen is high."""


def write_curve(curve: RateCurve, rate: float) -> None:
    """Write the losses at growing rates, which rate they suggest, and what a given one would do."""
    from torchkeep.training.diagnosis import judge_learning_rate

    sys.stdout.writelines(f"{line}\n" for line in table(list(_rows(curve)), right=(0, 1)))
    lines = []
    if curve.suggestion is not None:
        lines.append(
            f"suggested {curve.suggestion:.1e}, where the loss falls fastest; rates from "
            f"{curve.lowest:.1e} to {curve.highest:.1e} are of use"
        )
    told = [f"{item.text}. {item.advice}" for item in judge_learning_rate(curve, rate)]
    lines += [f"warning   {text}" for text in told] or [f"given     {rate:g}, which is of use"]
    write_lines(lines, indent=10)


def _rows(curve: RateCurve) -> Iterator[tuple[str, ...]]:
    yield "learning rate", "loss", ""
    most = max(curve.smoothed, default=1.0)
    for at in _places(curve):
        loss = curve.smoothed[at]
        yield f"{curve.rates[at]:.1e}", f"{loss:.4f}", "#" * round(_WIDTH * loss / most)


def _places(curve: RateCurve) -> list[int]:
    """Return the steps whose rates are next to 1, 2 and 5 of each power of ten, or so."""
    found: dict[int, tuple[float, int]] = {}
    for at, rate in enumerate(curve.rates):
        place = log10(rate) * _PER_DECADE
        near = abs(place - round(place)), at
        found[round(place)] = min(near, found.get(round(place), near))
    return [at for _, at in found.values()]
