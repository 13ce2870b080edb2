"""The comparison itself: tensors by digest, by bytes, by numbers; values by type and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any, Literal

from torchkeep.comparing.difference import (
    Change,
    Form,
    How,
    Kind,
    PartDifference,
    TensorDifference,
    ValueDifference,
)
from torchkeep.comparing.numbers import BLOCK_ELEMENTS, change_between, has_numbers, has_torch
from torchkeep.comparing.parts import Part
from torchkeep.contents import ITEM_SIZE, Contents, TensorEntry, Value
from torchkeep.elements import ElementReader
from torchkeep.files import Buffer, Progress, new_digest
from torchkeep.identify.digests import differs_from_digest, known_digest, stored_digests

_ABSENT = object()


class _Side:
    """One of the two files, open for reading."""

    def __init__(self, contents: Contents) -> None:
        self._digests = stored_digests(contents)
        self.reader = ElementReader(contents.path, stamps=contents.stamps)

    def digest_of(self, entry: TensorEntry) -> str | None:
        """Return the digest that the file has of a tensor, if it has one."""
        return known_digest(entry, self._digests)

    def checked_blocks(self, entry: TensorEntry, name: str) -> Iterator[Buffer]:
        """Yield the elements, and raise after the last one if they differ from their digest."""
        expected, running = self.digest_of(entry), new_digest()
        for block in self.reader.blocks(entry, name):
            if expected is not None:
                running.update(block)
            yield block
        if expected not in (None, running.hexdigest()):
            raise differs_from_digest(name, entry.storage.path or self.reader.path)


class Comparison:
    """Two files, and how much of them was compared so far.

    Args:
        a: the first file.
        b: the second file.
        verify: read tensors also where the digests in the files agree.
        progress: is told the bytes read, and the bytes there are.
    """

    def __init__(
        self, a: Contents, b: Contents, *, verify: bool, progress: Progress | None
    ) -> None:
        self.sides = _Side(a), _Side(b)
        self._readers = ExitStack()
        for side in self.sides:
            self._readers.enter_context(side.reader)
        self.verify = verify
        self.progress = progress
        self.with_numbers = has_torch()
        self.done = self.total = 0

    def plan(self, pairs: Iterable[tuple[Part, Part]]) -> None:
        """Find out how much there is to read."""
        for one, two in pairs:
            for name, a in one.leaves.items():
                b = two.leaves.get(name)
                if isinstance(a, TensorEntry) and isinstance(b, TensorEntry) and _is_read(a, b):
                    self.total += 0 if self._has_equal_digests(a, b) else a.nbytes + b.nbytes

    def compare(self, one: Part, two: Part) -> PartDifference:
        """Return how a part of A and one of B relate.

        Raises:
            FileProblem: a tensor can't be read, or differs from its digest; it is named.
        """
        tensors, values, num_values = [], [], 0
        for name in one.leaves | two.leaves:
            a, b = one.leaves.get(name, _ABSENT), two.leaves.get(name, _ABSENT)
            if all(item is _ABSENT or isinstance(item, TensorEntry) for item in (a, b)):
                tensors.append(self._tensors(name, _entry(a), _entry(b)))
                continue
            num_values += 1
            kind = _value_kind(a, b)
            if kind is not None:
                values.append(ValueDifference(name, kind, _shown(a), _shown(b)))
        return PartDifference(
            kind=one.kind,
            name_a=one.name,
            name_b=two.name,
            why_a=one.why,
            why_b=two.why,
            stripped_a=one.stripped,
            stripped_b=two.stripped,
            tensors=tuple(tensors),
            values=tuple(values),
            num_values=num_values,
        )

    def _tensors(self, name: str, a: TensorEntry | None, b: TensorEntry | None) -> TensorDifference:
        """Return how two tensors of one name relate."""
        kind, how, change = self._relation(name, a, b)
        return TensorDifference(name, kind, _form(a), _form(b), how, change)

    def _relation(
        self, name: str, a: TensorEntry | None, b: TensorEntry | None
    ) -> tuple[Kind, How, Change | None]:
        if a is None:
            return "only_b", "", None
        if b is None:
            return "only_a", "", None
        if a.shape != b.shape:
            return "shape", "", None
        if _is_meta(a) and _is_meta(b) and a.dtype == b.dtype:
            return "equal", "", None
        if _is_meta(a) or _is_meta(b):
            return "changed", "", None
        if a.dtype != b.dtype:
            return "dtype", "", self._change(name, a, b)
        if self._has_equal_digests(a, b):
            return "equal", "digests", None
        if self._has_same_bytes(name, a, b):
            return "equal", "bytes", None
        change = self._change(name, a, b)
        is_same = change is not None and not change.num_changed
        return "bits" if is_same else "changed", "bytes", change

    def _has_equal_digests(self, a: TensorEntry, b: TensorEntry) -> bool:
        """Whether the files themselves say that two tensors of one form are the same."""
        known = self.sides[0].digest_of(a)
        return not self.verify and known is not None and known == self.sides[1].digest_of(b)

    def _has_same_bytes(self, name: str, a: TensorEntry, b: TensorEntry) -> bool:
        is_same = True
        for one, two in self._blocks_of_both(name, a, b):
            self._advance(len(one) + len(two))
            is_same = is_same and one == two
        return is_same

    def _blocks_of_both(
        self, name: str, a: TensorEntry, b: TensorEntry
    ) -> Iterator[tuple[Buffer, Buffer]]:
        blocks = zip_longest(
            self.sides[0].checked_blocks(a, name), self.sides[1].checked_blocks(b, name)
        )
        for one, two in blocks:
            yield bytes(one), bytes(two)

    def _change(self, name: str, a: TensorEntry, b: TensorEntry) -> Change | None:
        """Return how far two tensors of one shape are apart; None where that can't be told."""
        if not (self.with_numbers and has_numbers(a.dtype) and has_numbers(b.dtype)):
            return None
        self.total += a.nbytes + b.nbytes
        return change_between(
            self._numbers(0, a, name), a.dtype, self._numbers(1, b, name), b.dtype
        )

    def _numbers(self, side: Literal[0, 1], entry: TensorEntry, name: str) -> Iterator[Buffer]:
        nbytes = BLOCK_ELEMENTS * ITEM_SIZE[entry.dtype]
        for block in self.sides[side].reader.blocks(entry, name, nbytes=nbytes):
            self._advance(len(block))
            yield block

    def _advance(self, nbytes: int) -> None:
        """Count what was read."""
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: Any) -> None:
        self._readers.__exit__(*error)


def _is_read(a: TensorEntry, b: TensorEntry) -> bool:
    """Whether the bytes of two tensors are to be compared."""
    return _form(a) == _form(b) and not (_is_meta(a) or _is_meta(b))


def _is_meta(entry: TensorEntry) -> bool:
    """Whether a tensor was saved without values."""
    return entry.storage.device == "meta" and not entry.chunks and entry.numel > 0


def _entry(value: Value) -> TensorEntry | None:
    return value if isinstance(value, TensorEntry) else None


def _form(entry: TensorEntry | None) -> Form | None:
    return None if entry is None else Form(entry.dtype, entry.shape)


def _shown(value: Value) -> Value:
    return None if value is _ABSENT else value


def _value_kind(a: Value, b: Value) -> Literal["changed", "only_a", "only_b"] | None:
    """Return how two plain values differ; None if they don't."""
    if a is _ABSENT:
        return "only_b"
    if b is _ABSENT:
        return "only_a"
    if isinstance(a, float | complex) and type(a) is type(b):
        return None if repr(a) == repr(b) else "changed"  # a NaN is itself, -0.0 is not 0.0
    return None if type(a) is type(b) and a == b else "changed"
