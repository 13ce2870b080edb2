"""What may be done to a tensor that doesn't fit as it is. Nothing is done unless it is asked for.

To add one, add an entry to `ADAPTATIONS` and its test. `apply` gets live tensors, and calls only
their own methods: this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchkeep.contents import TensorEntry
from torchkeep.matching.slots import Slot

Tensor = Any
"""A `torch.Tensor`; this half of the house doesn't import it."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """A named way to make a file's tensor fit a place in the model."""

    name: str
    """What the user calls it."""
    what: str
    """What it does, for a person."""
    fits: Callable[[TensorEntry, Slot], bool]
    """Whether it makes this entry fit this slot."""
    apply: Callable[[Tensor, Tensor], Tensor] | None
    """From the file's tensor and the model's to what the model gets; None leaves the model's."""


_FAMILIES = ("float", "bfloat", "complex", "uint", "int", "bool")


def _family(dtype: str) -> str:
    """Return what kind of number a dtype has: a float never becomes an integer by a cast."""
    family = next((name for name in _FAMILIES if dtype.startswith(name)), dtype)
    return {"bfloat": "float", "uint": "int"}.get(family, family)


def _can_cast(entry: TensorEntry, slot: Slot) -> bool:
    return entry.shape == slot.shape and _family(entry.dtype) == _family(slot.dtype)


def _cast(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.dtype)


ADAPTATIONS: dict[str, Adaptation] = {
    adaptation.name: adaptation
    for adaptation in (
        Adaptation("skip", "the model keeps what it has", lambda _entry, _slot: True, None),
        Adaptation("cast", "the values are converted to the model's dtype", _can_cast, _cast),
    )
}
"""Every adaptation by name."""
