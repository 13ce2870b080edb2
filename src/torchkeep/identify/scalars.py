"""The numbers in tensors of no dimensions: the loss, the step, the best accuracy.

Somebody wrote these values as tensors, or as arrays. A description reads them, a few bytes each;
those in state dicts and in optimizers are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from torchkeep.contents import ITEM_SIZE, Array, TensorEntry, Value
from torchkeep.errors import FileProblem
from torchkeep.files import InputFile
from torchkeep.pickles.arrays import unpack_number

MOST_SCALARS = 1_000
"""Tensors of one file that are read for their number."""
_WINDOW_NBYTES = 4096
"""What is read at once: a disk reads no less, and small storages stand side by side."""


def is_scalar(value: Value) -> bool:
    """Whether a value is a tensor or an array of no dimensions."""
    return isinstance(value, TensorEntry | Array) and value.shape == ()


def with_numbers(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values with the numbers of the scalar tensors among them.

    One whose number can't be told stays a tensor: it is packed, damaged, or of a type of which
    Python has no number.
    """
    scalars = {
        name: value.entry if isinstance(value, Array) else value
        for name, value in values.items()
        if is_scalar(value)
    }
    plain = {name: entry for name, entry in scalars.items() if _is_plain(entry)}
    found = {name: _number(plain[name], data) for name, data in _read(plain)}
    numbers = {name: number for name, number in found.items() if number is not None}
    return {name: numbers.get(name, value) for name, value in values.items()}


def _is_plain(entry: TensorEntry) -> bool:
    """Whether a scalar's bytes are its number, and are there."""
    is_odd = entry.is_composite or entry.quantizer or entry.dtype not in ITEM_SIZE
    return not is_odd and 0 < entry.nbytes_needed <= entry.storage.nbytes


def _number(entry: TensorEntry, data: bytes) -> Value:
    number = unpack_number(entry.dtype, entry.storage.byteorder, data)
    if isinstance(number, complex) and entry.is_conj:
        number = number.conjugate()
    return -number if number is not None and entry.is_neg else number


def _read(entries: Mapping[str, TensorEntry]) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes of scalars with their names, as far as they are to be had."""
    in_files: list[tuple[Path, int, int, str]] = []
    for name, entry in entries.items():
        first, storage = entry.storage_offset * ITEM_SIZE[entry.dtype], entry.storage
        if storage.data is not None:
            yield name, storage.data[first : first + entry.nbytes]
        elif storage.path is not None and storage.offset is not None:
            in_files.append((storage.path, storage.offset + first, entry.nbytes, name))
    for path, wanted in groupby(sorted(in_files), lambda item: item[0]):
        try:
            with InputFile(path) as file:
                yield from _read_file(file, [item[1:] for item in wanted])
        except FileProblem:  # a broken file is told of elsewhere
            continue


def _read_file(file: InputFile, wanted: list[tuple[int, int, str]]) -> Iterator[tuple[str, bytes]]:
    start, data = 0, b""
    for offset, nbytes, name in wanted:
        if not start <= offset <= start + len(data) - nbytes:
            available = file.nbytes - offset
            data = file.read_at(offset, max(nbytes, min(_WINDOW_NBYTES, available)))
            start = offset
        yield name, data[offset - start : offset - start + nbytes]
