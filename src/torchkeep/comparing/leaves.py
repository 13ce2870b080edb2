"""The leaves of a tree of values by path: what can be compared one by one."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace

from torchkeep.contents import Array, Global, Object, TensorEntry, Value, child_path, repr_key
from torchkeep.identify.survey import PLAIN
from torchkeep.identify.tree import Budget


def leaves(
    root: Value, budget: Budget, *, skipped: Set[int] = frozenset(), start: str = ""
) -> dict[str, Value]:
    """Return every tensor and plain value in a tree by path.

    A tensor that is made of others is there as these. Of an object, its class is a value as well.
    Where two stand at one path (`{"a": {"b": 1}, "a.b": 2}`), the second is marked with `~`.

    Args:
        root: the tree.
        budget: how much of it may be walked.
        skipped: ids of values that are left out with all that is in them.
        start: the path of the root.

    Raises:
        LimitReached: it unfolds too far.
    """
    found: dict[str, Value] = {}
    above: set[int] = set()  # values on the way to the current one, which may refer back to them

    def visit(path: str, value: Value, depth: int) -> None:
        budget.spend(depth, path)
        if id(value) in skipped:
            return
        items = list(_items(value))
        if not items or id(value) in above:
            while path in found:
                path += "~"
            found[path] = "(a value around this one)" if id(value) in above else _leaf(value)
            return
        above.add(id(value))
        for name, child in items:
            visit(child_path(path, name), child, depth + 1)
        above.discard(id(value))

    visit(start, root, 0)
    return found


def _leaf(value: Value) -> Value:
    if isinstance(value, Array):
        return value.entry
    return f"<{value.class_path}>" if isinstance(value, Object) else value


def _items(value: Value) -> Iterator[tuple[str, Value]]:
    """Yield what a value is made of, with names; nothing for a leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key if isinstance(key, str) else repr_key(key), item
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield str(index), item
    elif isinstance(value, set | frozenset):
        # A set has no order of its own; one of plain values has that of their texts.
        is_plain = all(isinstance(item, PLAIN) for item in value)
        for index, item in enumerate(sorted(value, key=repr) if is_plain else value):
            yield str(index), item
    elif isinstance(value, Object):
        yield from _object_items(value)
    elif isinstance(value, TensorEntry) and (value.quantizer or value.parts) and not value.chunks:
        yield from _tensor_items(value)


def _object_items(value: Object) -> Iterator[tuple[str, Value]]:
    yield "<class>", value.callee if isinstance(value.callee, Global) else value.class_path
    yield from ((f"args.{index}", item) for index, item in enumerate(value.args))
    yield from _items(value.kwargs)
    if value.attributes:
        yield from _items(value.attributes)
    elif value.state is not None:
        yield "state", value.state
    yield from _items(value.items)
    yield from _items(value.pairs)


def _tensor_items(entry: TensorEntry) -> Iterator[tuple[str, Value]]:
    """Yield the tensors that one is made of, and what says how."""
    if not entry.quantizer:
        same = [part for _, part in entry.parts if _form(part) == _form(entry)]
        if entry.class_path and len(same) == 1:  # a wrapper around the tensor itself
            yield entry.class_path, same[0]
            return
        yield "<layout>", f"{entry.class_path or entry.layout} {list(entry.shape)}"
    else:
        yield "<integers>", replace(entry, quantizer=(), parts=())
        yield "<quantizer>", entry.quantizer
    yield from entry.parts


def _form(entry: TensorEntry) -> tuple[str, tuple[int, ...]]:
    return entry.dtype, entry.shape
