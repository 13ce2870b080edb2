from __future__ import annotations

import math
from fractions import Fraction

import pytest

from torchkeep.report.amounts import duration, number, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (0.98328, "0.9833"), (100.0, "100"), (12345.6, "12,350"),
        (0.00095, "0.00095"), (3e-5, "3e-05"), (-0.5, "-0.5"), (2.5e12, "2.5e+12"),
        (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "\N{MINUS SIGN}∞"),
    ],
)  # fmt: skip
def test_a_number_is_short(value: float, text: str):
    assert number(value) == text


def test_only_all_of_it_is_one():
    assert number(0.99996) == "0.99996"
    assert number(0.9999999) == "0.9999999"
    assert number(1.00001) == "1"


def test_values_of_any_kind_are_shown():
    values = [None, True, 1234, 0.25, Fraction(1, 4), "adam", [1, 2.5], (), 10**5000]
    assert list(map(shown, values)) == [
        "\N{EN DASH}", "yes", "1,234", "0.25", "0.25", "adam", "1, 2.5", "none", "∞",
    ]  # fmt: skip


def test_a_duration_has_two_units():
    seconds = [0.25, 59.9, 60, 200, 3600, 7385, 200_000, -1.0, math.nan]
    assert list(map(duration, seconds)) == [
        "0.25 s", "60 s", "1 min", "3 min 20 s", "1 h", "2 h 3 min", "2 d 7 h",
        "\N{EN DASH}", "\N{EN DASH}",
    ]  # fmt: skip
