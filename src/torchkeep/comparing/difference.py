"""What two files have in common and what not, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchkeep.contents import Value
from torchkeep.identify.json_form import SCHEMA, Room, jsonable
from torchkeep.wording import counted

Kind = Literal["equal", "bits", "changed", "dtype", "shape", "only_a", "only_b"]
"""How two tensors or values of one name relate: `bits` means that their bits differ and their
values don't (-0.0 and 0.0, or NaNs of other bits)."""

How = Literal["bytes", "digests", ""]
"""What was compared: all bytes of both, or the digests that the files carry; nothing if shape or
dtype differ or one is missing."""

PartKind = Literal["state dict", "optimizer", "module", "values"]
"""What a part of a file is."""


@dataclass(frozen=True, slots=True)
class Form:
    """A tensor's type and sizes."""

    dtype: str
    """PyTorch's name of its element type."""
    shape: tuple[int, ...]
    """Its sizes."""


@dataclass(frozen=True, slots=True)
class Change:
    """How far two tensors of one shape are apart, computed in float64, integers exactly.

    Norms and the largest change are over the elements that are finite in both.
    """

    norm: float
    """The Euclidean norm of the difference."""
    relative: float
    """That norm by the norm of A; infinite if A is zero and B isn't."""
    largest: float
    """The largest absolute difference of two elements; of complex ones, its modulus."""
    num_changed: int
    """Elements whose values differ. A NaN equals a NaN, and -0.0 equals 0.0."""
    num_elements: int
    """Elements of each."""
    num_nan: tuple[int, int]
    """Elements that are NaN, in A and in B."""
    num_inf: tuple[int, int]
    """Elements that are infinite, in A and in B."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """Two tensors of one name."""

    name: str
    """The name, without what wrappers put into it."""
    kind: Kind
    """How they relate."""
    a: Form | None
    """The tensor in A; None if A has none of this name."""
    b: Form | None
    """The tensor in B; None if B has none of this name."""
    how: How = ""
    """What was compared."""
    change: Change | None = None
    """How far they are apart, where both have numbers, one shape, and not the same bits. None also
    where PyTorch is not installed, or has no numbers of their dtype."""


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """Two plain values of one path that are not the same."""

    name: str
    """The path within the part."""
    kind: Literal["changed", "only_a", "only_b"]
    """How they relate."""
    a: Value = None
    """The value in A, a tensor's description if it is a tensor there."""
    b: Value = None
    """The value in B."""


@dataclass(frozen=True, slots=True)
class PartDifference:
    """A part of A and its counterpart in B."""

    kind: PartKind
    """What both are."""
    name_a: str
    """Its path in A; empty for the root."""
    name_b: str
    """Its path in B."""
    why_a: str
    """Why this one was taken of A, in a sentence; empty where there is no choice."""
    why_b: str
    """The same of B."""
    stripped_a: tuple[str, ...]
    """The components of wrappers (`module`, `_orig_mod`) that the names in A were freed of."""
    stripped_b: tuple[str, ...]
    """The same in B."""
    tensors: tuple[TensorDifference, ...]
    """Every tensor of either, equal ones too, in A's order; then those that only B has."""
    values: tuple[ValueDifference, ...]
    """The plain values that differ."""
    num_values: int
    """Plain values that were compared."""

    @property
    def equal(self) -> bool:
        """Whether all of it is the same, bit for bit."""
        return not self.values and all(item.kind == "equal" for item in self.tensors)

    @property
    def counts(self) -> Counter[str]:
        """How many tensors there are of each kind."""
        return Counter(item.kind for item in self.tensors)


@dataclass(frozen=True, slots=True)
class Difference:
    """What `torchkeep.diff` found."""

    a: Path
    """The first file."""
    b: Path
    """The second file."""
    parts: tuple[PartDifference, ...]
    """What was compared: state dicts first, then optimizers, modules, other values."""
    left_out_a: tuple[str, ...]
    """Parts of A that B has no counterpart of; they count for nothing."""
    left_out_b: tuple[str, ...]
    """Parts of B that A has no counterpart of."""
    has_numbers: bool
    """Whether PyTorch was there to tell how far changed tensors are apart."""

    @property
    def equal(self) -> bool:
        """Whether all that was compared is the same, bit for bit."""
        return all(part.equal for part in self.parts)

    def __str__(self) -> str:
        counts = sum((part.counts for part in self.parts), Counter[str]())
        num_values = sum(part.num_values for part in self.parts)
        if self.equal:
            return f"equal: {_joined(counts.total(), 'tensor', num_values, 'value')}"
        told = [f"{counts[kind]:,} {words}" for kind, words in _WORDS if counts[kind]]
        text = f"{', '.join(told)} of {counted(counts.total(), 'tensor')}" if told else ""
        differing = sum(len(part.values) for part in self.parts)
        values = f"{differing:,} of {counted(num_values, 'value')}" if differing else ""
        return f"different: {'; '.join(filter(None, (text, values)))}"

    def to_json(self, *, equal: bool = False) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md) as plain dicts and lists.

        Args:
            equal: include the tensors that are equal; else they are only counted.
        """
        return {
            "schema": SCHEMA,
            "a": str(self.a),
            "b": str(self.b),
            "equal": self.equal,
            "summary": str(self),
            "parts": [_part_form(part, equal=equal) for part in self.parts],
            "left_out_a": list(self.left_out_a),
            "left_out_b": list(self.left_out_b),
            "has_numbers": self.has_numbers,
        }


_WORDS: tuple[tuple[Kind, str], ...] = (
    ("changed", "changed"),
    ("shape", "of another shape"),
    ("dtype", "of another dtype"),
    ("bits", "with other bits and equal values"),
    ("only_a", "only in A"),
    ("only_b", "only in B"),
)


def _joined(num: int, noun: str, other_num: int, other: str) -> str:
    parts = [counted(num, noun)] if num or not other_num else []
    return " and ".join([*parts, *([counted(other_num, other)] if other_num else [])])


def _part_form(part: PartDifference, *, equal: bool) -> dict[str, Any]:
    room = Room(100_000)
    return {
        "kind": part.kind,
        "name_a": part.name_a,
        "name_b": part.name_b,
        "why_a": part.why_a,
        "why_b": part.why_b,
        "stripped_a": list(part.stripped_a),
        "stripped_b": list(part.stripped_b),
        "equal": part.equal,
        "counts": dict(part.counts),
        "num_values": part.num_values,
        "tensors": [_tensor_form(t) for t in part.tensors if equal or t.kind != "equal"],
        "values": [_value_form(value, room) for value in part.values],
    }


def _tensor_form(item: TensorDifference) -> dict[str, Any]:
    return {
        "name": item.name,
        "kind": item.kind,
        "a": _form(item.a),
        "b": _form(item.b),
        "how": item.how,
        "change": _change_form(item.change),
    }


def _form(form: Form | None) -> dict[str, Any] | None:
    return None if form is None else {"dtype": form.dtype, "shape": list(form.shape)}


def _change_form(change: Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "norm": jsonable(change.norm),
        "relative": jsonable(change.relative),
        "largest": jsonable(change.largest),
        "num_changed": change.num_changed,
        "num_elements": change.num_elements,
        "num_nan": list(change.num_nan),
        "num_inf": list(change.num_inf),
    }


def _value_form(item: ValueDifference, room: Room) -> dict[str, Any]:
    form: dict[str, Any] = {"name": item.name, "kind": item.kind}
    for side, value, absent in (("a", item.a, "only_b"), ("b", item.b, "only_a")):
        if item.kind != absent:
            form[side] = jsonable(value, room)
    return form
