"""A tensor that lies in boxes, put together from them band by band, in C order.

A band is a run of the tensor: some rows along one dimension, at one place of those before it and
with all of those behind it. What a box has of a band is one run of the box, so that boxes are read
from their start to their end, each once, and no more than a band is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torchkeep.contents import Box, contiguous_stride
from torchkeep.writing.strided import Dims, copy_elements


@dataclass(frozen=True, slots=True)
class Part:
    """What a box has of a band; numbers count elements."""

    box: int
    """Which box, by its number."""
    begin: int
    """Where in the box the run starts."""
    count: int
    """How long it is."""
    to: int
    """Where in the band its first element goes."""
    dims: Dims
    """The run as it lies in both: of each dimension its size, its step in the band and in the box.
    """

    def put(self, run: memoryview, band: memoryview, item_nbytes: int) -> None:
        """Copy the run to its place in the band; both are flat bytes."""
        copy_elements(run, band, item_nbytes, self.dims, to=self.to)


@dataclass(frozen=True, slots=True)
class Band:
    """A run of the tensor, and which boxes have what of it; numbers count elements."""

    begin: int
    count: int
    parts: tuple[Part, ...]

    @property
    def whole(self) -> Part | None:
        """The one part that is all of the band, if there is one: nothing is to be copied then."""
        is_one = len(self.parts) == 1 and self.parts[0].count == self.count
        return self.parts[0] if is_one else None


def bands(
    shape: tuple[int, ...], boxes: Sequence[Box], most: int, *, first: int = 0
) -> Iterator[Band]:
    """Yield a tensor's bands in C order.

    Args:
        shape: its sizes.
        boxes: the boxes; where two overlap, the later part of a band is to be put over the other.
        most: elements of a band at the most.
        first: an element; bands before the one that it is in are left out.
    """
    if 0 in shape:
        return
    shape = shape or (1,)
    boxes = [Box(offsets or (0,), sizes or (1,)) for offsets, sizes in boxes]
    axis = next(n for n in range(len(shape)) if n + 1 == len(shape) or prod(shape[n + 1 :]) <= most)
    inner = prod(shape[axis + 1 :])
    rows = max(most // inner, 1)
    slab = shape[axis] * inner
    for number in range(first // slab, prod(shape[:axis])):
        index = _unraveled(number, shape[:axis])
        here = [(n, box) for n, box in enumerate(boxes) if _holds(box, index)]
        start = max(first - number * slab, 0) // inner // rows * rows
        for row in range(start, shape[axis], rows):
            end = min(row + rows, shape[axis])
            parts = tuple(
                _part(n, box, shape, index, row, end)
                for n, box in here
                if box.offsets[axis] < end
                and box.offsets[axis] + box.shape[axis] > row
                and 0 not in box.shape
            )
            yield Band(number * slab + row * inner, (end - row) * inner, parts)


def _unraveled(number: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        number, place = divmod(number, size)
        index.append(place)
    return tuple(reversed(index))


def _holds(box: Box, index: tuple[int, ...]) -> bool:
    return all(start <= at < start + size for at, start, size in zip(index, *box, strict=False))


def _part(
    number: int, box: Box, shape: tuple[int, ...], index: tuple[int, ...], row: int, end: int
) -> Part:
    """Return what a box has of the rows from one to another at an index."""
    offsets, sizes = box
    axis = len(index)
    top, bottom = max(row, offsets[axis]), min(end, offsets[axis] + sizes[axis])
    steps, own = contiguous_stride(shape), contiguous_stride(sizes)
    before = sum((a - b) * step for a, b, step in zip(index, offsets, own, strict=False))
    return Part(
        box=number,
        begin=before + (top - offsets[axis]) * own[axis],
        count=(bottom - top) * own[axis],
        to=(top - row) * steps[axis]
        + sum(a * step for a, step in zip(offsets[axis + 1 :], steps[axis + 1 :], strict=True)),
        dims=[
            (bottom - top, steps[axis], own[axis]),
            *zip(sizes[axis + 1 :], steps[axis + 1 :], own[axis + 1 :], strict=True),
        ],
    )
