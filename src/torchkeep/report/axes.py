"""Axes: where values stand between 0 and 1, and which of them are labelled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchkeep.report.amounts import number

LOG_RATIO = 10.0
"""Values that differ by no more than this factor need no log scale."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with its labelled values."""

    low: float
    """The value at 0."""
    high: float
    """The value at 1; more than `low`."""
    ticks: tuple[float, ...]
    """The values that are labelled, rising, all within."""
    log: bool
    """Whether equal steps are equal factors."""

    def place(self, value: float) -> float:
        """Return where a value stands, from 0 to 1; beyond that if it is outside."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)

    def label(self, tick: float) -> str:
        """Return a tick's text, with as many digits as it takes to tell it from its neighbours."""
        if self.log or len(self.ticks) < 2 or tick == 0:
            return number(tick)
        step = self.ticks[1] - self.ticks[0]
        largest = max(abs(self.ticks[0]), abs(self.ticks[-1]))
        digits = math.ceil(math.log10(largest)) - math.floor(math.log10(step) + 1e-9)
        return number(tick, max(2, min(digits + 1, 12)))


def drawable(value: float) -> float | None:
    """Return where a value stands in a drawing: 0 for the tiniest, None for what is nowhere.

    That is what is not finite, and what is beyond 1e100, which no float32 can be.
    """
    if not math.isfinite(value) or abs(value) > 1e100:
        return None
    return value if abs(value) > 1e-100 else 0.0


def axis(values: Iterable[float], *, may_log: bool = False) -> Axis:
    """Return an axis that spans all `values` that are drawable, and ends at round numbers.

    Args:
        values: what is to be shown.
        may_log: use a log scale if that helps; see `log_helps`.
    """
    drawn = [place for value in values if (place := drawable(value)) is not None]
    if may_log and log_helps(drawn):
        return _log_axis(min(drawn), max(drawn))
    low, high = (min(drawn), max(drawn)) if drawn else (0.0, 1.0)
    if high - low <= max(abs(high), abs(low)) * 1e-9:
        low, high = (low - abs(low) / 10, high + abs(high) / 10) if low or high else (0.0, 1.0)
    step = round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, log=False)


def log_helps(values: Sequence[float]) -> bool:
    """Return whether a log scale shows more of `values`.

    It does if they are positive, differ by more than `LOG_RATIO`, and the middle half of them takes
    more of the height. A loss that falls early gains by it; a cosine's learning rate does not.
    """
    if not values or min(values) <= 0 or max(values) / min(values) <= LOG_RATIO:
        return False
    low, first, third, high = _quartiles(values)
    in_log = math.log(third / first) / math.log(high / low)
    return in_log > (third - first) / (high - low)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float, float]:
    ranked = sorted(values)
    last = len(ranked) - 1
    quarter = (last + 2) // 4
    return ranked[0], ranked[quarter], ranked[last - quarter], ranked[-1]


def _log_axis(low: float, high: float) -> Axis:
    """Return a log axis that ends at 1, 2 or 5 times a power of ten, labelled more sparsely."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    marks = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in (1, 2, 5)]
    bottom = max(mark for mark in marks if mark <= low * (1 + 1e-9))
    top = min(mark for mark in marks if mark >= high * (1 - 1e-9))
    within = [mark for mark in marks if bottom <= mark <= top]
    if len(within) > 8:
        powers = {float(f"1e{power}") for power in range(first, last + 1)}
        within = [mark for mark in within if mark in powers]
        within = within[:: math.ceil(len(within) / 6)]
    return Axis(bottom, top, tuple(within), log=True)


def epoch_axis(first: float, last: float) -> Axis:
    """Return the axis of epochs, which ends where they end and is labelled at whole numbers."""
    if last <= first:
        return Axis(first - 1, first + 1, (first,), log=False)
    step = max(1.0, round_step((last - first) / 5))
    step = step if step == int(step) else 2 * step
    inner = [index * step for index in range(math.ceil(first / step), int(last // step) + 1)]
    room = (last - first) / 11
    ticks = {first, last, *(tick for tick in inner if first + room <= tick <= last - room)}
    return Axis(first, last, tuple(sorted(ticks)), log=False)


def round_step(rough: float) -> float:
    """Return 1, 2, 2.5 or 5 times a power of ten: the least that is not less than `rough`, > 0."""
    power = math.floor(math.log10(rough))
    steps = [float(f"{factor}e{power}") for factor in (1, 2, 2.5, 5, 10)]
    return next((step for step in steps if step >= rough * (1 - 1e-9)), steps[-1])
