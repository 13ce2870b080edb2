"""A place in a model that a tensor can fill, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

ANY_DTYPE = "any dtype"
"""The dtype of a place that takes on that of the file's tensor."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a model: what a tensor must look like to go there."""

    dtype: str
    """PyTorch's name of the element type, or `ANY_DTYPE`."""
    shape: tuple[int, ...]
    """The sizes."""
    tied_to: str | None = None
    """The first key that is the very same tensor, if this isn't it."""
    name: str | None = None
    """The key without the components of wrappers, if it is known which those are."""
    is_buffer: bool = False
    """Whether it is a buffer, which is filled like a parameter and isn't counted as one."""
    is_extra: bool = False
    """Whether it is a module's extra state, which takes any value and counts as no element."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return 0 if self.is_extra else prod(self.shape)
