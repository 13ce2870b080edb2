"""The elements of a strided view of memory in C order, without torch and without NumPy.

Python's memoryviews copy with a step at the speed of C. So the longest dimension is copied by one
slice at a time, and only the others are looped over.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

from torchkeep.contents import ITEM_SIZE, ROW_BITS, TensorEntry, contiguous_stride
from torchkeep.files import CHUNK_NBYTES, Buffer
from torchkeep.writing.payload import Payload

_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""What a memoryview calls an unsigned number of so many bytes."""

_Dims = list[tuple[int, int]]
"""Size and step of each dimension."""

Dims = list[tuple[int, int, int]]
"""Size of each dimension, and its steps in the memory that is written and in the one that is read.
"""


def payload_of_elements(entry: TensorEntry, storage: Payload) -> Payload:
    """Return a tensor's elements in C order, signs applied, as they are in safetensors.

    Of a tensor that is no plain run of its storage what it covers is held in memory while it is
    read.

    Args:
        entry: a tensor with a storage; its elements are whole bytes.
        storage: the storage's bytes, little endian.
    """
    if entry.dtype not in ITEM_SIZE or entry.dtype in ROW_BITS or not entry.numel:
        return storage.part(0, entry.nbytes)
    width = ITEM_SIZE[entry.dtype]
    begin = entry.storage_offset * width
    if entry.is_contiguous and not (entry.is_conj or entry.is_neg):
        return storage.part(begin, begin + entry.nbytes)

    def read(first: int, last: int) -> Iterator[Buffer]:
        memory = memoryview(storage.joined(begin, entry.nbytes_needed))
        position = 0
        for piece in elements(memory, width, entry.shape, entry.stride):
            whole = with_signs(piece, entry)
            yield whole[max(first - position, 0) : max(last - position, 0)]
            position += len(whole)

    return Payload(entry.nbytes, read)


def elements(
    memory: memoryview,
    item_nbytes: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
) -> Iterator[memoryview]:
    """Yield the elements in C order, in pieces of a few megabytes at the most if they are copied.

    Args:
        memory: flat bytes; they may end within an element.
        item_nbytes: bytes of an element: 1, 2, 4, 8 or 16.
        shape: the sizes.
        stride: elements between neighbours of each dimension, not negative.
        offset: elements before the first one.
    """
    dims = _merged(list(zip(shape, stride, strict=True)))
    if item_nbytes == 16:  # no memoryview has such numbers; each is two of the half size
        dims = _merged([*((size, 2 * step) for size, step in dims), (2, 1)])
        item_nbytes, offset = 8, 2 * offset
    if 0 in shape:
        return
    usable = len(memory) // item_nbytes * item_nbytes
    yield from _pieces(memory[:usable].cast(_FORMATS[item_nbytes]), dims, offset)


def copy_elements(
    source: memoryview, target: memoryview, item_nbytes: int, dims: Dims, *, to: int = 0
) -> None:
    """Copy elements from a view of one memory to a view of another.

    Args:
        source: flat bytes; the first element is the first one there.
        target: flat bytes.
        item_nbytes: bytes of an element: 1, 2, 4, 8 or 16.
        dims: sizes and steps, in elements, those of the target first.
        to: elements before the first one of the target.
    """
    if item_nbytes == 16:  # no memoryview has such numbers; each is two of the half size
        dims = [*((size, 2 * one, 2 * other) for size, one, other in dims), (2, 1, 1)]
        item_nbytes, to = 8, 2 * to
    kind = _FORMATS[item_nbytes]
    _copy(source.cast(kind), target.cast(kind), _merged_pairs(dims), to=to)


def with_signs(piece: memoryview, entry: TensorEntry) -> memoryview | bytes:
    """Return elements with the signs that a conjugated or negated tensor has apart from its bytes.

    Args:
        piece: whole elements of the tensor, little endian.
        entry: the tensor.
    """
    if not (entry.is_conj or entry.is_neg):
        return piece
    item_nbytes = ITEM_SIZE[entry.dtype]
    if "complex" in entry.dtype:  # the real part first; a sign is the last byte's highest bit
        half = item_nbytes // 2
        real, imaginary = entry.is_neg, entry.is_conj != entry.is_neg
        mask = _sign(half, real) + _sign(half, imaginary)
    else:
        mask = _sign(item_nbytes, entry.is_neg)
    flips = mask * (len(piece) // item_nbytes)
    number = int.from_bytes(piece, "little") ^ int.from_bytes(flips, "little")
    return number.to_bytes(len(piece), "little")


def _sign(nbytes: int, is_flipped: bool) -> bytes:
    return bytes(nbytes - 1) + (b"\x80" if is_flipped else b"\0")


def _merged(dims: _Dims) -> _Dims:
    """Return fewer dimensions of the same elements: neighbours in one run become one."""
    merged: _Dims = []
    for size, step in dims:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * step:
            merged[-1] = merged[-1][0] * size, step
        else:
            merged.append((size, step))
    return merged


def _pieces(memory: memoryview, dims: _Dims, offset: int) -> Iterator[memoryview]:
    if not dims or (len(dims) == 1 and dims[0][1] == 1):
        yield memory[offset : offset + prod(size for size, _ in dims)].cast("B")
        return
    if prod(size for size, _ in dims) * memory.itemsize <= CHUNK_NBYTES:
        yield _gathered(memory, dims, offset)
        return
    (size, step), inner = dims[0], dims[1:]
    rows = max(CHUNK_NBYTES // (prod(size for size, _ in inner) * memory.itemsize), 1)
    for first in range(0, size, rows):
        part = min(rows, size - first)
        some = inner if part == 1 else [(part, step), *inner]
        yield from _pieces(memory, some, offset + first * step)


def _gathered(memory: memoryview, dims: _Dims, offset: int) -> memoryview:
    """Return a copy of the elements, in C order."""
    shape = tuple(size for size, _ in dims)
    made = memoryview(bytearray(prod(shape) * memory.itemsize)).cast(_FORMATS[memory.itemsize])
    places = list(zip(shape, contiguous_stride(shape), (step for _, step in dims), strict=True))
    _copy(memory, made, places, start=offset)
    return made.cast("B")


def _merged_pairs(dims: Dims) -> Dims:
    """Return fewer dimensions of the same elements: neighbours in one run in both become one."""
    merged: Dims = []
    for size, one, other in dims:
        if size == 1:
            continue
        if merged and merged[-1][1:] == (size * one, size * other):
            merged[-1] = merged[-1][0] * size, one, other
        else:
            merged.append((size, one, other))
    return merged or [(1, 1, 1)]


def _copy(
    memory: memoryview, made: memoryview, places: Dims, *, start: int = 0, to: int = 0
) -> None:
    """Copy elements: along one dimension by slices, along the others one by one."""
    size, out_step, step = places.pop(_copied_dimension(places))
    targets, starts = [to], [start]
    for count, out_width, width in places:
        targets = [at + index * out_width for at in targets for index in range(count)]
        starts = [at + index * width for at in starts for index in range(count)]
    out_length, length = (size - 1) * out_step + 1, (size - 1) * step + 1
    for at, first in zip(targets, starts, strict=True):
        run = memory[first : first + length : step] if step else _repeated(memory, first, size)
        made[at : at + out_length : out_step] = run


def _copied_dimension(places: list[tuple[int, int, int]]) -> int:
    """Return the dimension to copy by slices: a long one whose elements are near each other."""
    longest = max(size for size, _, _ in places)
    return min(
        (index for index, (size, _, _) in enumerate(places) if size * _SHORTER >= longest),
        key=lambda index: sum(places[index][1:]),
    )


_SHORTER = 16
"""How much shorter than the longest dimension a better one may be: a slice has its own cost."""


def _repeated(memory: memoryview, start: int, size: int) -> memoryview:
    one = bytes(memory[start : start + 1])
    return memoryview(one * size).cast(_FORMATS[memory.itemsize])
