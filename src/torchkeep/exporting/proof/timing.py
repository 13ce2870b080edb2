"""How long calls take, the original's and the file's in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from torchkeep.exporting.proof.session import Session

ROUNDS = 5
_ROUND_S = 0.15


@dataclass(frozen=True, slots=True)
class Timing:
    """How long calls take with one batch size."""

    batch_size: int
    """Samples in a call."""
    median_s: float
    """Seconds of a call: half of them are faster."""
    p95_s: float
    """Seconds that 95 of 100 calls stay below."""

    @property
    def per_second(self) -> float:
        """Samples in a second."""
        return self.batch_size / self.median_s


def side_by_side(
    original: Callable[[], object], session: Session, arrays: Sequence[Any], batch_size: int
) -> tuple[Timing, Timing]:
    """Return how long the original's calls and the file's take.

    They run in turns, so that another program which takes the processor meets both.

    Args:
        original: runs the original once.
        session: the file.
        arrays: the same inputs.
        batch_size: how many samples they are.
    """
    calls = _calls_of_a_round(original)
    found: tuple[list[float], list[float]] = ([], [])
    session.seconds(arrays, max(1, calls // 4))
    for _ in range(ROUNDS):
        for _ in range(calls):
            begin = time.perf_counter()
            original()
            found[0].append(time.perf_counter() - begin)
        found[1].extend(session.seconds(arrays, calls))
    one, two = (_timing(batch_size, seconds) for seconds in found)
    return one, two


def _calls_of_a_round(original: Callable[[], object]) -> int:
    original()
    begin = time.perf_counter()
    original()
    return max(1, min(200, int(_ROUND_S / max(time.perf_counter() - begin, 1e-6))))


def _timing(batch_size: int, seconds: list[float]) -> Timing:
    return Timing(batch_size, median(seconds), quantiles(seconds, n=20, method="inclusive")[-1])
