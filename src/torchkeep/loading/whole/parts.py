"""What a whole model in a file is made of: every value in it, and every name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchkeep.contents import Array, Global, Object, TensorEntry, Value
from torchkeep.identify.modules import is_module, module_class, module_state
from torchkeep.identify.whole_models import unwrapped

FORGOTTEN = frozenset({"_backend"})
"""Attributes of modules that PyTorch has no use for any more."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a model, where it is first met."""

    name: Global
    place: str
    """The path of what it is used for."""


def parts_of(value: Value) -> Iterator[tuple[str, Value]]:
    """Yield what is in a value, as far as it is needed to rebuild it, each with its name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield "", key
            yield str(key) if isinstance(key, str | int) else "", item
    elif isinstance(value, list | tuple | set | frozenset):
        for place, item in enumerate(value):
            yield str(place), item
    elif isinstance(value, Object):
        yield from _parts_of_object(value)


def _parts_of_object(value: Object) -> Iterator[tuple[str, Value]]:
    if is_module(value):
        yield "", module_class(value)
        for name, item in module_state(value).items():
            if name not in FORGOTTEN:
                yield "" if name in ("_modules", "_parameters", "_buffers") else str(name), item
        return
    yield "", value.callee
    for part in (value.args, value.kwargs, value.state, value.items, value.pairs):
        yield "", part


def every_part(root: Value) -> Iterator[tuple[str, Value]]:
    """Yield everything in a model once, each with its path, the root first."""
    waiting: list[tuple[str, Value]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        path, value = waiting.pop()
        value = unwrapped(value)
        if not isinstance(value, _HELD) or id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        inner = [(_join(path, name), part) for name, part in parts_of(value)]
        waiting += reversed(inner)


_HELD = (Object, Global, dict, list, tuple, set, frozenset, TensorEntry, Array)


def mentions(root: Value) -> list[Mention]:
    """Return every name in a model once, in the order of first mention."""
    found: dict[Global, Mention] = {}
    for path, value in every_part(root):
        if isinstance(value, Global):
            found.setdefault(value, Mention(value, path))
    return list(found.values())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
