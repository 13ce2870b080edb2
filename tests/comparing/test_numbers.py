"""comparing/numbers.py: exact for every dtype, whatever the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.comparing.difference import Change
from torchkeep.comparing.numbers import change_between, has_numbers
from torchkeep.tensors import bytes_of, dtype_name


def blocks(tensor: torch.Tensor, elements: int = 3) -> Iterator[bytes]:
    data, size = bytes(bytes_of(tensor.contiguous())), tensor.element_size()
    for start in range(0, len(data), elements * size):
        yield data[start : start + elements * size]


def change(a: torch.Tensor, b: torch.Tensor) -> Change:
    return change_between(blocks(a), dtype_name(a.dtype), blocks(b), dtype_name(b.dtype))


FLOATS = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]
INTEGERS = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16),
    *(torch.uint32, torch.int32, torch.uint64, torch.int64),
]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e8m0fnu], ids=str)
def test_floats_are_compared_in_float64(dtype: torch.dtype) -> None:
    a, b = torch.tensor([1.0, 2, 4, 0.5]).to(dtype), torch.tensor([1.0, 4, 0.5, 0.5]).to(dtype)
    found = change(a, b)
    assert found.norm == pytest.approx(math.sqrt(4 + 3.5**2), rel=1e-15)
    assert found.relative == pytest.approx(found.norm / math.sqrt(1 + 4 + 16 + 0.25), rel=1e-15)
    assert (found.largest, found.num_changed, found.num_elements) == (3.5, 2, 4)
    assert (found.num_nan, found.num_inf) == ((0, 0), (0, 0))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_are_compared_as_such(dtype: torch.dtype) -> None:
    a, b = torch.tensor([0, 1, 1, 0]).to(dtype), torch.tensor([0, 1, 0, 1]).to(dtype)
    found = change(a, b)
    assert (found.norm, found.relative) == (pytest.approx(math.sqrt(2)), pytest.approx(1))
    assert (found.largest, found.num_changed, found.num_elements) == (1, 2, 4)


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_of_complex_numbers_the_modulus_counts(dtype: torch.dtype) -> None:
    a = torch.tensor([1 + 1j, 2j, 5 + 0j, 1j]).to(dtype)
    b = torch.tensor([4 + 5j, 2j, 5 + 1j, complex(math.nan, math.inf)]).to(dtype)
    found = change(a, b)
    assert (found.largest, found.num_changed, found.num_elements) == (5, 3, 4)
    assert found.norm == pytest.approx(math.sqrt(25 + 1))
    assert found.relative == pytest.approx(math.sqrt(26 / (2 + 4 + 25)))
    assert (found.num_nan, found.num_inf) == ((0, 1), (0, 1))


@given(st.lists(st.tuples(*[st.integers(-(1 << 63), (1 << 63) - 1)] * 2), min_size=1))
def test_64_bits_of_integers_are_exact(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(column) for column in zip(*pairs, strict=True))
    for one, two in ((a, b), (a.view(torch.uint64), b.view(torch.uint64))):
        numbers = list(zip(one.tolist(), two.tolist(), strict=True))
        found = change(one, two)
        assert found.largest == max(abs(x - y) for x, y in numbers)
        assert found.num_changed == sum(x != y for x, y in numbers)
        norm = math.sqrt(sum((x - y) ** 2 for x, y in numbers))
        assert found.norm == pytest.approx(norm, rel=1e-12)


def test_nan_equals_nan_and_minus_zero_zero_and_infinities_are_counted() -> None:
    inf, nan = math.inf, math.nan
    a = torch.tensor([nan, nan, -0.0, inf, inf, 3.0, 1.0])
    b = torch.tensor([nan, 1.0, 0.0, inf, -inf, 4.0, nan])
    found = change(a, b)
    assert (found.num_nan, found.num_inf) == ((2, 2), (2, 2))
    assert found.num_changed == 4
    assert (found.norm, found.largest, found.relative) == (1, 1, pytest.approx(1 / 3))


def test_what_becomes_of_zeros_is_infinitely_far() -> None:
    assert change(torch.zeros(2), torch.ones(2)).relative == math.inf
    assert change(torch.zeros(2), -torch.zeros(2)).relative == 0
    empty = change(torch.zeros(0), torch.zeros(0))
    assert (empty.norm, empty.relative, empty.num_elements) == (0, 0, 0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    a = torch.tensor([3.0, 0, 0, 4.0], dtype=torch.float64) * scale
    found = change(a, torch.zeros_like(a))
    assert (found.norm, found.relative) == (pytest.approx(5 * scale), pytest.approx(1))


def test_a_difference_that_overflows_is_infinite() -> None:
    a = torch.tensor([1e308, 1.0], dtype=torch.float64)
    found = change(a, -a)
    assert (found.norm, found.largest, found.num_changed) == (math.inf, math.inf, 2)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.float32, torch.float16),
        (torch.int64, torch.float32),
        (torch.uint64, torch.int64),
        (torch.bool, torch.complex64),
        (torch.complex64, torch.float64),
        (torch.uint8, torch.int32),
    ],
    ids=str,
)
def test_tensors_of_two_dtypes_are_compared_by_value(a: torch.dtype, b: torch.dtype) -> None:
    one, two = torch.tensor([0, 1, 1, 0, 1]).to(a), torch.tensor([0, 1, 0, 0, 1]).to(b)
    found = change(one, two)
    assert (found.norm, found.largest, found.num_changed) == (1, 1, 1)
    assert found.relative == pytest.approx(1 / math.sqrt(3))


@given(st.lists(st.floats(width=32), max_size=12), st.integers(1, 5))
def test_the_blocks_change_nothing(numbers: list[float], size: int) -> None:
    a = torch.tensor(numbers)
    b = a.flip(0)
    whole = change_between(blocks(a, 100), "float32", blocks(b, 100), "float32")
    found = change_between(blocks(a, size), "float32", blocks(b, size), "float32")
    assert found.norm == pytest.approx(whole.norm, rel=1e-12)
    assert found.num_changed == whole.num_changed
    assert (found.largest, found.num_nan, found.num_inf) == (
        *(whole.largest, whole.num_nan, whole.num_inf),
    )


def test_what_shares_bytes_has_no_numbers() -> None:
    unknown = ("float4_e2m1fn_x2", "quint4x2", "f6_e2m3", "bits8", "uint3")
    assert not any(map(has_numbers, unknown))
