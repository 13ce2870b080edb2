"""A tensor's elements as bytes, straight from its file, without torch.

Whatever the file does with them (a strided view of a larger storage, packed, big-endian, in pieces
in several shards, conjugated by a flag), they come out in C order and little-endian, in blocks of
one size, so that a tensor of any size takes the memory of a block. Only what does not lie in one
run takes more: a view needs the part of the storage that it spans, pieces need the whole tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Literal

from torchkeep.contents import ITEM_SIZE, ROW_BITS, Storage, TensorEntry, contiguous_stride
from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent
from torchkeep.files import CHUNK_NBYTES, Buffer, InputFile
from torchkeep.formats.folders.dcp_shards import piece_of
from torchkeep.formats.zips.deflated import check_ratio, inflate_into

_DAMAGED = "Copy or download the file again."
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""A format of memoryview for each size of an element."""
_FLIP = bytes(value ^ 0x80 for value in range(256))
"""What turns the sign bit of each byte."""


class ElementReader:
    """Reads the elements of entries; each file is opened when it is first needed.

    Args:
        path: what to name in an error about an entry that lies in no file of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[Path, InputFile] = {}
        self._unpacked: tuple[Storage, bytearray] | None = None

    def blocks(
        self, entry: TensorEntry, name: str = "", *, nbytes: int = CHUNK_NBYTES
    ) -> Iterator[Buffer]:
        """Yield the elements in C order, little-endian.

        Of a quantized tensor they are its integers; where elements share bytes, the bytes.

        Args:
            entry: the tensor, one that is not made of `parts`.
            name: what to call it in an error.
            nbytes: the size of each block but the last, a multiple of that of an element.

        Raises:
            DamagedFile: it reaches past its storage, or the storage past the file.
            UnsupportedContent: it has no bytes: it was saved from the `meta` device, is made of
                parts, or lies packed in an archive.
        """
        called = f"tensor {name!r}" if name else f"a tensor in storage {entry.storage.key!r}"
        try:
            if entry.numel:
                self._check(entry, called)
                yield from _in_blocks(self._runs(entry, called, nbytes), nbytes)
        except FileProblem as problem:
            raise problem.in_file(entry.storage.path or self.path) from None

    def _runs(self, entry: TensorEntry, called: str, nbytes: int) -> Iterator[Buffer]:
        if entry.chunks:
            return iter([self._joined(entry, called)])
        runs = self._run(entry, nbytes) if entry.is_contiguous else self._gathered(entry, nbytes)
        return map(_Repair(entry), runs)

    def _run(self, entry: TensorEntry, nbytes: int) -> Iterator[Buffer]:
        """Yield the bytes of an entry whose elements lie in one run, as they are stored."""
        first = entry.storage_offset * ITEM_SIZE.get(entry.dtype, 1)
        for start in range(0, entry.nbytes, nbytes):
            yield self._part(entry.storage, first + start, min(nbytes, entry.nbytes - start))

    def _gathered(self, entry: TensorEntry, nbytes: int) -> Iterator[Buffer]:
        """Yield the elements of a strided view, as they are stored."""
        size = ITEM_SIZE[entry.dtype]
        first = entry.storage_offset * size
        spanned = self._part(entry.storage, first, entry.nbytes_needed - first)
        for starts, shape in _slabs(entry.shape, max(1, nbytes // size)):
            slab = bytearray(prod(shape) * size)
            offset = sum(a * b for a, b in zip(starts, entry.stride, strict=True))
            stride = contiguous_stride(shape)
            copy_box(spanned, offset, entry.stride, slab, 0, stride, shape, size)
            yield slab

    def _joined(self, entry: TensorEntry, called: str) -> bytearray:
        """Return a tensor that is spread over the shards of a distributed checkpoint."""
        size, stride = ITEM_SIZE[entry.dtype], contiguous_stride(entry.shape)
        whole = bytearray(entry.nbytes)
        for chunk in entry.chunks:
            try:
                piece = b"".join(self.blocks(piece_of(chunk, entry.dtype)))
            except DamagedFile as problem:
                text = f"a piece of {called} can't be used: {problem.problem}"
                raise DamagedFile(text, path=chunk.path) from None
            start = sum(a * b for a, b in zip(chunk.offsets, stride, strict=True))
            inner = contiguous_stride(chunk.shape)
            copy_box(piece, 0, inner, whole, start, stride, chunk.shape, size)
        return whole

    def _part(self, storage: Storage, start: int, nbytes: int) -> Buffer:
        """Return bytes of a storage, as they are stored."""
        if storage.data is not None:
            return memoryview(storage.data)[start : start + nbytes]
        if storage.deflated is None:
            return self._file(storage).read_at((storage.offset or 0) + start, nbytes)
        if self._unpacked is None or self._unpacked[0] is not storage:
            # The next entry likely looks into the same storage.
            self._unpacked = None
            unpacked = bytearray(storage.nbytes)
            inflate_into(memoryview(unpacked), self._file(storage), storage)
            self._unpacked = storage, unpacked
        return memoryview(self._unpacked[1])[start : start + nbytes]

    def _check(self, entry: TensorEntry, called: str) -> None:
        """Raise, as `blocks` does, if the entry can't be read."""
        if entry.chunks:
            return
        if entry.is_composite:
            raise UnsupportedContent(f"{called} is made of parts, and has no bytes of its own")
        is_packed = entry.dtype not in ITEM_SIZE or entry.dtype in ROW_BITS
        if is_packed and not entry.is_whole:
            text = f"{called} is a view whose elements ({entry.dtype}) share bytes"
            raise UnsupportedContent(text, advice="Save it as a tensor of its own.")
        if (
            min((entry.storage_offset, *entry.stride, *entry.shape)) < 0
            or entry.nbytes_needed > entry.storage.nbytes
        ):
            raise DamagedFile(
                f"{called} (shape {entry.shape}, stride {entry.stride}, offset "
                f"{entry.storage_offset}) reaches past its storage of {entry.storage.nbytes} bytes",
                advice=_DAMAGED,
            )
        self._check_place(entry.storage, called)

    def _check_place(self, storage: Storage, called: str) -> None:
        if storage.data is not None:
            return
        if storage.device == "meta":
            text = f"{called} has no values: it was saved from the meta device"
            raise UnsupportedContent(text, advice="Save it from another device.")
        if storage.offset is None and storage.deflated is None:
            raise DamagedFile(f"{called} has no bytes in the file")
        if storage.path is None:
            text = f"{called} lies packed in an archive"
            raise UnsupportedContent(text, advice="Unpack the archive, and give what comes out.")
        start, held = storage.offset or 0, storage.nbytes
        if storage.deflated is not None:
            start, held = storage.deflated.offset, storage.deflated.nbytes
            check_ratio(storage, called)
        end, nbytes = start + held, self._file(storage).nbytes
        if end > nbytes:
            raise DamagedFile(
                f"{called} lies in bytes {start} to {end}, and the file ends at {nbytes}",
                advice=_DAMAGED,
            )

    def _file(self, storage: Storage) -> InputFile:
        path = storage.path or self.path
        if path not in self._files:
            self._files[path] = InputFile(path)
        return self._files[path]

    def close(self) -> None:
        """Close the files."""
        self._unpacked = None
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> ElementReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Repair:
    """Turns bytes as they are stored into little-endian elements, their flags carried out."""

    def __init__(self, entry: TensorEntry) -> None:
        self.is_complex = "complex" in entry.dtype
        size = ITEM_SIZE.get(entry.dtype, 1)
        self.part_nbytes = size // 2 if self.is_complex else size
        self.is_swapped = entry.storage.byteorder == "big" and self.part_nbytes > 1
        self.is_conj, self.is_neg = entry.is_conj, entry.is_neg
        if self.is_neg and not (self.is_complex or entry.dtype in _SIGN_IN_TOP_BIT):
            raise UnsupportedContent(f"a tensor of {entry.dtype} is negated by a flag")

    def __call__(self, data: Buffer) -> Buffer:
        if not (self.is_swapped or self.is_conj or self.is_neg):
            return data
        made, size = bytearray(data), self.part_nbytes
        if self.is_swapped:
            for place in range(size):
                made[place::size] = data[size - 1 - place :: size]
        if self.is_neg:
            made[size - 1 :: size] = made[size - 1 :: size].translate(_FLIP)
        if self.is_conj and self.is_complex:
            imaginary = slice(2 * size - 1, None, 2 * size)
            made[imaginary] = made[imaginary].translate(_FLIP)
        return made


_SIGN_IN_TOP_BIT = frozenset("float16 bfloat16 float32 float64".split())


def _in_blocks(runs: Iterable[Buffer], nbytes: int) -> Iterator[Buffer]:
    """Yield the same bytes in blocks of one size, the last one excepted."""
    rest = bytearray()
    for run in runs:
        view = memoryview(run)
        if rest:
            missing = nbytes - len(rest)
            rest += view[:missing]
            view = view[missing:]
            if len(rest) < nbytes:
                continue
            yield rest
            rest = bytearray()
        while len(view) >= nbytes:
            yield view[:nbytes]
            view = view[nbytes:]
        rest += view
    if rest:
        yield rest


def _slabs(shape: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield boxes that follow each other in C order, of at most `most` elements: start and shape.

    >>> list(_slabs((3, 2), 4))
    [((0, 0), (2, 2)), ((2, 0), (1, 2))]
    """
    if prod(shape) <= most:
        yield (0,) * len(shape), shape
        return
    size, inner = shape[0], shape[1:]
    if prod(inner) > most:
        for start in range(size):
            for starts, part in _slabs(inner, most):
                yield (start, *starts), (1, *part)
        return
    step = most // prod(inner)
    for start in range(0, size, step):
        yield (start, *(0,) * len(inner)), (min(step, size - start), *inner)


def copy_box(
    source: Buffer,
    source_start: int,
    source_stride: Sequence[int],
    target: bytearray,
    target_start: int,
    target_stride: Sequence[int],
    shape: Sequence[int],
    item_nbytes: int,
) -> None:
    """Copy a box of elements between two buffers of other strides.

    Starts and strides count elements. The longest run of neighbours is copied in one call, and
    Python walks over the rest.

    Args:
        source: what is copied from.
        source_start: the box's first element in it.
        source_stride: its strides there; 0 repeats an element.
        target: what is copied to.
        target_start: the box's first element in it.
        target_stride: its strides there.
        shape: the sizes of the box.
        item_nbytes: the size of an element: 1, 2, 4, 8 or 16.
    """
    if not prod(shape):
        return
    axes = [
        axis for axis in zip(shape, source_stride, target_stride, strict=True) if axis[0] > 1
    ] or [(1, 1, 1)]
    if item_nbytes == 16:
        axes = [(size, 2 * one, 2 * other) for size, one, other in axes] + [(2, 1, 1)]
        source_start, target_start, item_nbytes = 2 * source_start, 2 * target_start, 8
    axes = _merged(axes)
    axes.append(axes.pop(max(range(len(axes)), key=lambda axis: axes[axis][0])))
    *outer, (size, step, target_step) = axes
    taken, given = _items(source, item_nbytes), _items(target, item_nbytes)
    for index in itertools.product(*(range(size) for size, _, _ in outer)):
        first, to = source_start, target_start
        for place, (_, one, other) in zip(index, outer, strict=True):
            first += place * one
            to += place * other
        run = taken[first : first + (size - 1) * step + 1 : step] if step else taken[first:]
        if not step:
            run = _items(bytes(run[:1]) * size, item_nbytes)
        given[to : to + (size - 1) * target_step + 1 : target_step] = run


def _merged(axes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Join neighbouring axes that are one run in both buffers."""
    merged = axes[-1:]
    for size, one, other in reversed(axes[:-1]):
        inner_size, inner_one, inner_other = merged[0]
        if (one, other) == (inner_size * inner_one, inner_size * inner_other):
            merged[0] = size * inner_size, inner_one, inner_other
        else:
            merged.insert(0, (size, one, other))
    return merged


def _items(data: Buffer, item_nbytes: int) -> memoryview:
    view = memoryview(data)
    return view[: len(view) // item_nbytes * item_nbytes].cast(_FORMATS[item_nbytes])
