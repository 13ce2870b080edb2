"""Whether the indices of sparse tensors lie within their shapes.

An index is data, and a wrong one makes a program that trusts it read or write foreign memory. So
the indices are the one kind of tensor that is read for a description, as long as they are small.

Source: the invariants in torch/sparse (`check_sparse_tensor_invariants`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator

from torchkeep.contents import Contents, DictObject, Finding, Object, TensorEntry, Value
from torchkeep.errors import DamagedFile
from torchkeep.files import Readable
from torchkeep.formats.torch.layouts import SPARSE_CLASSES

MAX_NBYTES = 1 << 20
"""Indices of one file that are read; what is more is said to be unchecked."""

_MAKERS = frozenset(
    {
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_sparse_csr_tensor",
        *SPARSE_CLASSES,
    }
)
_MOST_PLACES = 1_000_000
_CODES = {"int32": "i", "int64": "q"}


def check_sparse_indices(contents: Contents, file: Readable) -> tuple[Finding, ...]:
    """Return what is wrong with the sparse tensors of a file; nothing if it names none."""
    if _MAKERS.isdisjoint(map(str, contents.globals)):
        return ()
    checker = _Checker(file)
    for entry in _sparse_tensors(contents.root):
        if entry is None:
            checker.note_unchecked("")
        else:
            checker.check(entry)
    return tuple(checker.findings)


def _sparse_tensors(root: Value) -> Iterator[TensorEntry | None]:
    """Yield the sparse tensors of a tree, wherever they stand, and None if it is too large."""
    waiting, seen = [root], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorEntry):
            if value.layout.startswith("sparse_"):
                yield value
        elif isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            if len(seen) > _MOST_PLACES:
                yield None
                return
            waiting.extend(_parts(value))


_CONTAINERS = (dict, list, tuple, set, frozenset, Object)


def _parts(value: Value) -> Iterable[Value]:
    if isinstance(value, Object):
        return (value.callee, value.args, value.kwargs, value.state, value.items, value.pairs)
    if isinstance(value, dict):
        attributes = value.attributes if isinstance(value, DictObject) else None
        return (*value, *value.values(), attributes)
    items: Iterable[Value] = value
    return items


class _Checker:
    def __init__(self, file: Readable) -> None:
        self.file = file
        self.left = MAX_NBYTES
        self.findings: list[Finding] = []

    def check(self, entry: TensorEntry) -> None:
        for part, sizes in _indices(entry):
            numbers = self.read(part)
            if numbers is not None and not _are_within(numbers, sizes):
                text = f"a sparse tensor of shape {entry.shape} has indices outside of it"
                place = part.storage.key
                self.findings.append(Finding("sparse-out-of-bounds", "ambiguous", place, text))

    def note_unchecked(self, place: str) -> None:
        text = "the indices of a sparse tensor were not checked; PyTorch does when it loads it"
        self.findings.append(Finding("sparse-unchecked", "needs-trust", place, text))

    def read(self, entry: TensorEntry) -> array[int] | None:
        """Return the numbers of an index tensor, or None if they are not looked at."""
        storage = entry.storage
        self.left -= entry.nbytes
        in_file = storage.offset is not None and storage.path == self.file.source
        if self.left < 0 or entry.dtype not in _CODES or not entry.is_contiguous or not in_file:
            self.note_unchecked(storage.key)
            return None
        numbers = array(_CODES[entry.dtype])
        width = numbers.itemsize
        start = (storage.offset or 0) - self.file.start + entry.storage_offset * width
        try:
            numbers.frombytes(self.file.read_at(start, entry.nbytes))
        except DamagedFile:
            return None  # said elsewhere
        if storage.byteorder != sys.byteorder:
            numbers.byteswap()
        return numbers


def _indices(entry: TensorEntry) -> Iterator[tuple[TensorEntry, tuple[int, ...]]]:
    """Yield a sparse tensor's index tensors, each with the bounds of its rows."""
    parts = dict(entry.parts)
    if entry.layout == "sparse_coo":
        indices = parts["indices"]
        yield indices, entry.shape[: indices.shape[0] if indices.shape else 0]
        return
    (_, compressed), (name, plain), (_, values) = entry.parts
    axis = -1 if name == "col_indices" else -2
    is_blocked = entry.layout in ("sparse_bsr", "sparse_bsc") and len(values.shape) >= 3
    block = values.shape[axis] if is_blocked else 1
    size = entry.shape[axis] if len(entry.shape) >= 2 else 0
    yield compressed, (plain.numel + 1,)
    yield plain, (size // max(block, 1),)


def _are_within(numbers: array[int], sizes: tuple[int, ...]) -> bool:
    """Whether the numbers are as many rows as there are sizes, each row from 0 up to its size."""
    if not sizes or len(numbers) % len(sizes):
        return not numbers
    count = len(numbers) // len(sizes)
    rows = (numbers[start : start + count] for start in range(0, len(numbers), count or 1))
    return all(min(row) >= 0 and max(row) < size for row, size in zip(rows, sizes, strict=False))
