"""writing/boxes.py: a tensor that lies in boxes comes out as it was, whatever the boxes."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.contents import Box
from torchkeep.tensors import bytes_of
from torchkeep.writing.boxes import bands

DTYPES = [torch.uint8, torch.float16, torch.float32, torch.int64, torch.complex128]


def put_together(whole: torch.Tensor, boxes: list[Box], most: int, first: int = 0) -> bytes:
    """Return the bytes of a tensor from copies of its boxes, from the band of an element on."""
    size = whole.element_size()
    pieces = [
        bytes(bytes_of(whole[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))].clone()))
        for box in boxes
    ]
    made, position = b"", None
    for band in bands(tuple(whole.shape), boxes, most, first=first):
        assert position in (None, band.begin)
        position = band.begin + band.count
        assert band.count <= max(most, 1)
        data = bytearray(band.count * size)
        for part in band.parts:
            run = pieces[part.box][part.begin * size : (part.begin + part.count) * size]
            part.put(memoryview(run), memoryview(data), size)
        if band.whole is not None:
            start = band.whole.begin * size
            assert data == pieces[band.whole.box][start : start + len(data)]
        made += data
    return made


@st.composite
def grids(draw: st.DrawFn) -> tuple[torch.Tensor, list[Box]]:
    """Return a tensor, and boxes that tile it: a grid of uneven steps, some of them empty."""
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    cuts = [sorted([0, size, *draw(st.lists(st.integers(0, size), max_size=3))]) for size in shape]
    steps = [list(pairwise(cut)) for cut in cuts]
    boxes = [
        Box(tuple(start for start, _ in place), tuple(end - start for start, end in place))
        for place in product(*steps)
    ]
    dtype = draw(st.sampled_from(DTYPES))
    whole = torch.arange(prod(shape) * dtype.itemsize).to(torch.uint8).view(dtype).view(shape)
    return whole, draw(st.permutations(boxes))


@given(grids(), st.integers(1, 60))
@settings(max_examples=400, deadline=None)
def test_any_grid_of_boxes_gives_the_tensor_in_c_order(
    grid: tuple[torch.Tensor, list[Box]], most: int
) -> None:
    whole, boxes = grid
    assert put_together(whole, boxes, most) == bytes(bytes_of(whole))


@given(grids(), st.integers(1, 20), st.data())
@settings(max_examples=200, deadline=None)
def test_it_can_be_begun_at_any_element(
    grid: tuple[torch.Tensor, list[Box]], most: int, data: st.DataObject
) -> None:
    whole, boxes = grid
    first = data.draw(st.integers(0, whole.numel() - 1))
    begin = next(bands(tuple(whole.shape), boxes, most, first=first)).begin
    assert begin <= first < begin + most
    expected = bytes(bytes_of(whole))[begin * whole.element_size() :]
    assert put_together(whole, boxes, most, first) == expected


def test_each_box_is_read_from_its_start_to_its_end() -> None:
    whole = torch.arange(6 * 5 * 4).view(6, 5, 4)
    boxes = [((0, 0, 0), (6, 5, 1)), ((0, 0, 1), (2, 5, 3)), ((2, 0, 1), (4, 5, 3))]
    at = [0, 0, 0]
    for band in bands(tuple(whole.shape), boxes, 8):
        for part in band.parts:
            assert part.begin == at[part.box]
            at[part.box] += part.count
    assert at == [prod(shape) for _, shape in boxes]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_a_tensor_without_elements_has_no_bands(shape: tuple[int, ...]) -> None:
    assert list(bands(shape, [((0,) * len(shape), shape)], 8)) == []
