"""What the values of a file could do: names in settings, pickles in bytes, shapes that exhaust."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torchkeep.contents import Contents, DictObject, Finding, Global, Object, Value
from torchkeep.identify.safety.names import danger
from torchkeep.pickles.limits import Limits

_TARGET = "_target_"
_TARGET_IN_TEXT = re.compile(r"_target_[\"']?\s*[:=]\s*[\"']?([A-Za-z_][\w.]*)")
_MOST_TARGETS = 100
_LONGEST_TEXT = 1 << 20
_FREE_PLACES = 10_000
_PLACES_PER_BYTE = 4


@dataclass(slots=True)
class Walk:
    """What a walk over a file's values found. Each container is visited once."""

    targets: dict[str, None] = field(default_factory=dict)
    """What settings name under `_target_`, in order."""
    blobs: list[tuple[Value, bytes]] = field(default_factory=list)
    """Bytes that look like a pickle or an archive, and what they are given to (or None)."""
    places: int = 0
    """How many values there are when values that stand in several places are told apart."""
    depth: int = 0
    """How deep they are nested."""


def findings_in_values(contents: Contents, walk: Walk, limits: Limits) -> Iterator[Finding]:
    """Yield what a walk says about a file's safety."""
    yield from map(_judge_target, walk.targets)
    most = min(limits.places, _FREE_PLACES + _PLACES_PER_BYTE * contents.nbytes)
    if walk.places > most:
        text = "its values unfold into far more places than the file has bytes"
        yield Finding("unfolding", "ambiguous", "", text)
    if walk.depth > limits.depth:
        text = f"its values are nested deeper than the limit depth={limits.depth:,}"
        yield Finding("nesting", "ambiguous", "", text)


def _judge_target(path: str) -> Finding:
    module, _, name = path.rpartition(".")
    reason = danger(Global(module or "builtins", name))
    if reason:
        text = f"a program that follows its settings would use {path}, which {reason}"
        return Finding("target", "dangerous", path, text)
    text = f"a program that follows its settings would call {path}"
    return Finding("target", "needs-trust", path, text)


def walk_values(contents: Contents) -> Walk:
    """Return what is in a file's tree of values and in its metadata."""
    walk = Walk()
    for text in contents.metadata.values():
        _look_at_text(text, walk)
    sizes: dict[int, tuple[int, int]] = {}
    # A container is left once everything in it is known; what is still open is one that it is in.
    waiting: list[tuple[Value, bool]] = [(contents.root, False)]
    if not isinstance(contents.root, _CONTAINERS):
        _look_at_leaf(contents.root, None, walk)
        return walk
    while waiting:
        value, is_done = waiting.pop()
        if is_done:
            sizes[id(value)] = _size(value, sizes)
        elif id(value) not in sizes:
            sizes[id(value)] = (1, 0)
            waiting.append((value, True))
            _look_at(value, walk)
            waiting.extend((item, False) for item in _parts(value) if isinstance(item, _CONTAINERS))
    walk.places, walk.depth = sizes[id(contents.root)]
    return walk


_CONTAINERS = (dict, list, tuple, set, frozenset, Object)
_BOUND = 1 << 62


def _size(value: Value, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    places, depth = 1, 0
    for item in _parts(value):
        below, levels = sizes.get(id(item), (1, 0)) if isinstance(item, _CONTAINERS) else (1, 0)
        places += below
        depth = max(depth, levels + 1)
    return min(places, _BOUND), depth


def _parts(value: Value) -> Iterator[Value]:
    if isinstance(value, Object):
        yield from value.args
        yield value.kwargs
        yield value.state
        yield from value.items
        yield value.pairs
        if isinstance(value.callee, Object):
            yield value.callee
    elif isinstance(value, dict):
        yield from value.values()
        yield from (key for key in value if not isinstance(key, str))
        if isinstance(value, DictObject):
            yield value.attributes
    else:
        yield from value


def _look_at(value: Value, walk: Walk) -> None:
    """Note what stands directly in a container."""
    if isinstance(value, dict) and _TARGET in value:
        for text in _texts(value[_TARGET]):
            _add_target(text, walk)
    given_to = value.callee if isinstance(value, Object) else None
    for item in _parts(value):
        if isinstance(item, _LEAVES):
            _look_at_leaf(item, given_to, walk)


def _texts(value: Value) -> list[str]:
    """Return the text that a setting is, plain or in an object of a library of settings."""
    if isinstance(value, Object):
        return [item for item in value.attributes.values() if isinstance(item, str)]
    return [value] if isinstance(value, str) else []


_LEAVES = (str, bytes, bytearray)


def _look_at_leaf(value: Value, given_to: Value, walk: Walk) -> None:
    if isinstance(value, str):
        _look_at_text(value, walk)
    elif isinstance(value, bytes | bytearray) and _may_be_loaded(value):
        walk.blobs.append((given_to, bytes(value)))


def _look_at_text(text: str, walk: Walk) -> None:
    if len(text) > len(_TARGET) and _TARGET in text:
        for found in _TARGET_IN_TEXT.findall(text[:_LONGEST_TEXT]):
            _add_target(found, walk)


def _add_target(path: str, walk: Walk) -> None:
    if len(walk.targets) < _MOST_TARGETS:
        walk.targets.setdefault(path)


def _may_be_loaded(data: bytes | bytearray) -> bool:
    """Whether bytes start as a pickle of protocol 2 or newer does, or as an archive."""
    return (data[:1] == b"\x80" and data[1:2] <= b"\x05" and len(data) > 3) or data[:4] in (
        b"PK\x03\x04",
        b"7z\xbc\xaf",
    )
