"""Work in a unit that is the same on every machine, fast or slow, idle or busy.

Seconds would fail a test because of its neighbours. What a test allows is told in millions of turns
of an empty loop, which are timed right before and right after; fifty of them take about a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torchkeep.garbage import collection_paused

_TURNS = 200_000


def million_turns() -> float:
    """Return the processor seconds that a million turns of an empty loop take at present."""
    return min(_timed() for _ in range(3)) * 1_000_000 / _TURNS


def _timed() -> float:
    start = time.process_time()
    for _ in range(_TURNS):
        pass
    return time.process_time() - start


@contextmanager
def at_most(most: float) -> Iterator[None]:
    """Fail if the block takes more work than `most` million turns.

    To collect what the tests before have left is not its work.
    """
    unit = million_turns()
    with collection_paused():
        start = time.process_time()
        yield
        spent = time.process_time() - start
    unit = max(unit, million_turns())
    assert spent <= most * unit, (
        f"it took the work of {spent / unit:,.0f} million turns of an empty loop, not {most}"
    )
