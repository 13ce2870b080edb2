"""What reading a pickle gives, and what those who take part in the reading look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchkeep.contents import Finding, Global, Value

Constructor = Callable[..., Value]
"""Makes the inert value of a call from the call's arguments; ValueError if they make no sense."""

Builder = Callable[[Value, Value], Value | None]
"""Makes what a value becomes when a state is set on it; None if that is nothing special."""

PERSISTENT_ID = Global("pickle", "<persistent id>")
"""The callee of the `Object` that stands for a persistent id nobody could resolve."""

COMPUTED = Global("<computed>", "<computed>")
"""Stands for a name that the file makes at run time."""


@dataclass(frozen=True, slots=True)
class Pickled:
    """What one pickle stream holds."""

    root: Value
    """The value that it leaves."""
    globals: tuple[Global, ...]
    """Every name that it mentions, in the order of first mention."""
    findings: tuple[Finding, ...]
    """What a reader should know about the stream."""
    protocol: int
    """The protocol that it declares; 0 if it declares none."""
    unusual: tuple[str, ...] = ()
    """The opcodes in it that `torch.load(weights_only=True)` does not know."""
