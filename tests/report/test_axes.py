from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.report.axes import axis, drawable, epoch_axis, log_helps


@given(st.lists(st.floats()), st.booleans())
def test_every_axis_spans_its_values_and_tells_its_ticks_apart(values: list[float], may_log: bool):
    found = axis(values, may_log=may_log)
    assert found.low < found.high
    places = [found.place(place) for value in values if (place := drawable(value)) is not None]
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in places)
    ticks = [found.place(tick) for tick in found.ticks]
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 8
    labels = [found.label(tick) for tick in found.ticks]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.1, 0.92], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.981, 0.9835], ["0.981", "0.9815", "0.982", "0.9825", "0.983", "0.9835"]),
        ([3.0, 3.0], ["2.6", "2.8", "3", "3.2", "3.4"]),
        ([], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([math.nan, math.inf, 1e300], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_ticks_are_round(values: list[float], labels: list[str]):
    found = axis(values)
    assert [found.label(tick) for tick in found.ticks] == labels


def test_a_log_scale_is_used_where_it_shows_more():
    falling = [2.3 / epoch**2 for epoch in range(1, 30)]
    cosine = [1 + 1e-6 + math.cos(math.pi * epoch / 30) for epoch in range(31)]
    assert log_helps(falling)
    assert not log_helps(cosine)
    assert not log_helps([1.0, 5.0, 9.0])
    assert not log_helps([*falling, 0.0])
    assert axis(falling, may_log=True).log
    assert not axis(falling).log


def test_a_log_axis_is_labelled_at_ones_twos_and_fives_or_at_powers():
    assert axis([2.3, 0.2, 0.11, 0.1], may_log=True).ticks == (0.1, 0.2, 0.5, 1, 2, 5)
    assert axis([30, 1e-2, 1e-3, 1e-4], may_log=True).ticks == (1e-4, 1e-3, 1e-2, 0.1, 1, 10)


@pytest.mark.parametrize(
    ("last", "ticks"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (18, (1, 5, 10, 15, 18)),
        (1000, (1, 200, 400, 600, 800, 1000)),
        (12, (1, 5, 10, 12)),
    ],
)
def test_epochs_are_labelled_at_both_ends_and_at_round_numbers(last: int, ticks: tuple[int, ...]):
    found = epoch_axis(1, last)
    assert found.ticks == ticks
    assert found.place(last) == (0.5 if last == 1 else 1)
