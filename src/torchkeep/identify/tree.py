"""Walking a tree of inert values without being led astray by it.

A pickle can say "this list again" in two bytes, so a small file can unfold into more places than
there are atoms, or into itself. Every walk therefore carries a `Budget`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torchkeep.contents import Array, Contents, Memory, Object, TensorEntry, Value, repr_key
from torchkeep.errors import LimitReached
from torchkeep.pickles.limits import Limits, how_to_raise

_FREE_PLACES = 10_000
_PLACES_PER_BYTE = 4
_CHARACTERS_PER_PLACE = 100


@dataclass(slots=True)
class Budget:
    """How many places may still be visited.

    An honest tree has fewer places than its file has bytes, since every place takes an opcode;
    values that really are shared make it a small multiple of that.
    """

    left: int
    """Places that may still be visited."""
    depth: int
    """Levels of nesting that may be visited."""
    raisable: frozenset[str] = frozenset()
    """The limits that are what bounds the walk; the others' raising would not help."""

    @classmethod
    def for_contents(cls, contents: Contents, limits: Limits) -> Budget:
        """Return what reading a file may cost."""
        places = _FREE_PLACES + _PLACES_PER_BYTE * contents.nbytes
        # Each level takes a few frames of Python's own stack, which is bounded as well.
        depth = sys.getrecursionlimit() // 2
        bounds = {"places": limits.places < places, "depth": limits.depth < depth}
        raisable = frozenset(name for name, binds in bounds.items() if binds)
        return cls(min(limits.places, places), min(limits.depth, depth), raisable)

    def spend(self, depth: int, path: str = "", num_attributes: int = 0) -> None:
        """Count one place at a depth.

        A long path and many attributes cost as much as several places: what is kept of a place
        is bounded by the file's size as well.

        Raises:
            LimitReached: there were too many, or they are nested too deep.
        """
        self.left -= 1 + len(path) // _CHARACTERS_PER_PLACE + num_attributes
        if self.left < 0 and "places" in self.raisable:
            raise LimitReached(
                "the file's values stand in more places than the limit called places allows",
                advice=how_to_raise("places"),
            )
        if self.left < 0:
            raise LimitReached(
                "the file's values unfold into far more places than it has bytes",
                advice="No training program writes such a file.",
            )
        if depth >= self.depth:
            raise LimitReached(
                f"the file's values are nested deeper than the limit depth={self.depth:,}",
                advice=how_to_raise("depth") if "depth" in self.raisable else "",
            )


def children(value: Value) -> Iterator[tuple[str, Value]]:
    """Yield what is directly inside a value, with its key, list position or attribute name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key if isinstance(key, str) else repr_key(key), item
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield str(index), item
    elif isinstance(value, Object):
        yield from _parts(value)


def _parts(value: Object) -> Iterator[tuple[str, Value]]:
    for index, item in enumerate(value.args):
        if isinstance(item, TensorEntry | Object | dict | list | tuple):
            yield f"args.{index}", item
    yield from children(value.kwargs)
    attributes = value.attributes
    if attributes:
        yield from children(attributes)
    elif value.state is not None:
        yield "state", value.state
    yield from children(value.items)
    yield from children(value.pairs)


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor at one place of the file."""

    path: str
    """Keys, list positions and attribute names from the root, joined by dots."""
    entry: TensorEntry
    """What stands there."""
    alias_of: str | None
    """The first path whose tensor lies in the same storage, or None if this is the first."""
    same_as: str | None
    """The first path whose tensor is the very same elements of it, or None if this is the first."""


def named_tensors(root: Value, budget: Budget, *, arrays: bool = False) -> tuple[NamedTensor, ...]:
    """Return every tensor of a tree, once for each place where it stands.

    Args:
        root: the tree.
        budget: how much of it may be walked.
        arrays: take NumPy's arrays for the tensors of their elements.
    """
    found: list[NamedTensor] = []
    first: dict[int, str] = {}
    first_of_memory: dict[Memory, str] = {}

    # Values on the way to the current one (an object may refer back to its owner), and values
    # without any tensor in them, which need no second visit.
    closed: set[int] = set()

    def visit(path: str, value: Value, depth: int) -> bool:
        """Return whether there is a tensor in `value`."""
        budget.spend(depth, path)
        if arrays and isinstance(value, Array):
            value = value.entry
        if isinstance(value, TensorEntry):
            alias = first.setdefault(id(value.storage), path)
            same = first_of_memory.setdefault(value.memory, path)
            found.append(NamedTensor(path, value, _other(alias, path), _other(same, path)))
            return True
        if id(value) in closed:
            return False
        closed.add(id(value))
        has = False
        for name, child in children(value):
            if isinstance(child, _CONTAINERS):
                has |= visit(f"{path}.{name}" if path else name, child, depth + 1)
        if has:
            closed.discard(id(value))
        return has

    visit("", root, 0)
    return tuple(found)


def _other(first: str, path: str) -> str | None:
    return None if first == path else first


_CONTAINERS = (TensorEntry, Array, dict, list, tuple, set, frozenset, Object)
