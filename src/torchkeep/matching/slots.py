"""A place in a model that a tensor can fill, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a model: what a tensor must look like to go there."""

    dtype: str
    """PyTorch's name of the element type."""
    shape: tuple[int, ...]
    """The sizes."""
    tied_to: str | None = None
    """The first key that is the very same tensor, if this isn't it."""

    is_extra: bool = False
    """Whether it is a module's extra state, which takes any value and counts as no element."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return 0 if self.is_extra else prod(self.shape)
