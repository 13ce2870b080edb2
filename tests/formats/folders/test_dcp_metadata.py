"""Whether the pieces of a tensor cover it, told from their corners, and by counting elements."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.contents import Box
from torchkeep.formats.folders.dcp_metadata import SavedTensor, tiling


@st.composite
def tilings(draw: st.DrawFn) -> SavedTensor:
    """Return a tensor that is cut in two again and again, along any dimension."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    boxes = [Box((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        boxes += cut(box, axis, draw(st.integers(0, box.shape[axis])))
    return SavedTensor("float32", shape, tuple(draw(st.permutations(boxes))))


def cut(box: Box, axis: int, size: int) -> list[Box]:
    def replaced(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:axis], value, *values[axis + 1 :])

    second = replaced(box.offsets, box.offsets[axis] + size)
    return [
        Box(box.offsets, replaced(box.shape, size)),
        Box(second, replaced(box.shape, box.shape[axis] - size)),
    ]


@st.composite
def boxes_within(draw: st.DrawFn) -> SavedTensor:
    """Return a tensor with any boxes in it."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    boxes = []
    for _ in range(draw(st.integers(0, 5))):
        offsets = tuple(draw(st.integers(0, size)) for size in shape)
        sizes = tuple(
            draw(st.integers(0, size - start)) for start, size in zip(offsets, shape, strict=True)
        )
        boxes.append(Box(offsets, sizes))
    return SavedTensor("float32", shape, tuple(boxes))


@given(tilings())
def test_what_was_cut_apart_covers_the_whole(tensor: SavedTensor) -> None:
    assert tiling(tensor) is None


@given(boxes_within())
def test_boxes_cover_a_tensor_if_each_element_is_in_one(tensor: SavedTensor) -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for box in tensor.boxes:
        ranges = [range(n, n + size) for n, size in zip(box.offsets, box.shape, strict=True)]
        counts.update(product(*ranges))
    every = set(product(*(range(size) for size in tensor.shape)))
    is_right = set(counts) == every and set(counts.values()) <= {1}
    found = tiling(tensor)
    assert (found is None) == is_right
    if found is not None and found.is_gap:
        assert set(counts) != every


@given(tilings(), st.data())
def test_a_piece_that_is_missing_or_there_twice_is_noticed(
    tensor: SavedTensor, data: st.DataObject
) -> None:
    solid = [box for box in tensor.boxes if prod(box.shape)]
    one = data.draw(st.sampled_from(solid))
    rest = tuple(box for box in solid if box is not one)
    gap = tiling(SavedTensor("float32", tensor.shape, rest))
    assert gap is not None
    assert gap.is_gap
    twice = tiling(SavedTensor("float32", tensor.shape, (*tensor.boxes, one)))
    assert twice is not None
    assert (twice.is_gap, twice.text) == (False, "its pieces overlap")


@pytest.mark.parametrize(
    ("shape", "boxes"), [((), [Box((), ())]), ((0, 3), []), ((0, 3), [Box((0, 0), (0, 3))])]
)
def test_a_scalar_and_an_empty_tensor_are_covered(shape: tuple[int, ...], boxes: list[Box]) -> None:
    assert tiling(SavedTensor("float32", shape, tuple(boxes))) is None


def test_a_split_along_more_dimensions_than_any_is_not_checked() -> None:
    corners = product(*[(0, 1)] * 8)
    boxes = tuple(Box(corner, (1,) * 8) for corner in corners)
    found = tiling(SavedTensor("float32", (2,) * 8, boxes))
    assert found is not None
    assert found.text == "split along 8 dimensions, which can't be checked"
