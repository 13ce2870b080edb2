"""How far outputs are from those of the original."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from torchkeep.exporting.proof.parity import TOLERANCES, Tolerance, compare, disagreement

STRICT = TOLERANCES["float32"]
LOOSE = Tolerance(10, 0, 0.5, 0)
values = arrays_of.arrays(
    np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
)


@given(values)
def test_what_is_the_same_is_the_same(array: np.ndarray) -> None:
    found = compare("batch 4", "output", array, array.copy(), STRICT)
    assert (found.largest, found.mean, found.problem) == (0, 0, "")
    assert found.cosine == pytest.approx(1)
    assert found.agreement == 1


@given(values, st.integers(0, 11), st.floats(0.01, 100))
def test_one_element_that_differs_by_a_hundredth_is_found(
    array: np.ndarray, at: int, share: float
) -> None:
    scale = float(np.abs(array).max()) or 1.0
    other = array.astype(np.float64)
    other.flat[at] += share * scale
    found = compare("batch 4", "output", array, other, STRICT)
    assert found.problem.startswith("it differs by up to")
    assert found.largest == pytest.approx(share * scale, rel=1e-3)


def test_another_shape_is_no_number() -> None:
    found = compare("batch 2", "output", np.zeros((2, 3)), np.zeros((1, 3)), LOOSE)
    assert found.problem == "its shape is [1, 3], and [2, 3] was expected"
    assert math.isinf(found.largest)


def test_nan_and_infinity_are_right_where_they_were_and_wrong_elsewhere() -> None:
    array = np.array([[1, np.nan, np.inf, -np.inf]], np.float32)
    assert not compare("a", "b", array, array.copy(), STRICT).problem
    for wrong in (np.nan, np.inf):
        other = array.copy()
        other[0, 0] = wrong
        assert "it differs by up to inf" in compare("a", "b", array, other, LOOSE).problem


def test_what_is_no_number_at_all_proves_nothing() -> None:
    array = np.full((2, 3), np.nan, np.float32)
    assert "nowhere a number (NaN)" in compare("a", "b", array, array.copy(), LOOSE).problem
    assert not compare("a", "b", array[:0], array[:0], LOOSE).problem


def test_complex_numbers_are_compared_in_both_parts() -> None:
    array = np.array([[1 + 2j, 3 - 4j]], np.complex64)
    assert not compare("a", "b", array, array.copy(), STRICT).problem
    found = compare("a", "b", array, array.conj(), STRICT)
    assert found.problem.startswith("it differs by up to 8")


def test_large_integers_are_compared_to_the_last_bit() -> None:
    array = np.array([2**53, 1])
    assert not compare("a", "at", array, array.copy(), LOOSE).problem
    assert (
        "it differs by up to 1"
        in compare("a", "at", array, array + np.array([1, 0]), LOOSE).problem
    )


def test_integers_have_to_be_the_same() -> None:
    found = compare("a", "at", np.array([3, 4]), np.array([3, 5]), LOOSE)
    assert found.problem.startswith("it differs by up to 1")
    assert found.agreement is None


def test_the_share_of_the_same_classes_counts_over_all_cases() -> None:
    one = np.eye(4, dtype=np.float32)
    allowed = Tolerance(10, 0, 0.75, 0)
    same = compare("a", "b", one, one, allowed)
    half = compare("c", "b", one, one[[0, 2, 1, 3]], allowed)
    assert (half.agreement, half.num_predictions, half.problem) == (0.5, 4, "")
    assert disagreement([same, half], allowed) == ""
    told = "b: 2 of 4 predictions agree (50.0%), and 75.0% is the least"
    assert disagreement([half], allowed) == told
    other = replace(same, output="d")
    assert disagreement([half, other], allowed) == told, "an output makes up for another"
    assert disagreement([replace(half, is_as_exact=True)], allowed) == ""


def test_of_two_that_are_as_high_either_is_right() -> None:
    one = np.array([[1, 1 - 1e-7, 0]], np.float32)
    two = np.array([[1 - 1e-7, 1, 0]], np.float32)
    assert compare("a", "b", one, two, STRICT).agreement == 1
    assert compare("a", "b", one * [1, 0.9, 1], two, STRICT).agreement == 0


def test_an_angle_counts() -> None:
    one, two = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
    found = compare("a", "b", one, two, Tolerance(10, 0.99, 0, 0))
    assert found.cosine == pytest.approx(0.96)
    assert found.problem == "its cosine is 0.960000, and 0.99 is the least"
    assert compare("a", "b", one * 1e300, one * 1e300, STRICT).cosine == pytest.approx(1)
    assert compare("a", "b", one * 0, one, LOOSE).cosine == 0
