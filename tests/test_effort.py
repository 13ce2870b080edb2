"""The yardstick of the tests tells little work from much."""

from __future__ import annotations

import pytest

from effort import at_most


def test_little_work_passes_and_much_fails():
    with at_most(20):
        sum(range(1000))
    with pytest.raises(AssertionError, match=r"million turns of an empty loop, not 1$"), at_most(1):
        for _ in range(10_000_000):
            pass
