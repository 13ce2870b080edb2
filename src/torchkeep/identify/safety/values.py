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
    blobs: list[tuple[str, bytes]] = field(default_factory=list)
    """Bytes that look like a pickle or an archive, and the dotted name of what they are given to,
    if it has one; those that stand in several places once for each name."""
    given: set[tuple[int, str]] = field(default_factory=set)
    """Which of them are known already."""
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


def _target_name(path: str) -> Global:
    module, _, name = path.rpartition(".")
    return Global(module or "builtins", name)


def _judge_target(path: str) -> Finding:
    reason = danger(_target_name(path))
    if reason:
        text = f"a program that follows its settings would use {path}, which {reason}"
        return Finding("target", "dangerous", path, text)
    text = f"a program that follows its settings would call {path}"
    return Finding("target", "needs-trust", path, text)


def walk_values(contents: Contents) -> Walk:
    """Return what is in a file's tree of values and in its metadata."""
    walk = Walk()
    for text in contents.metadata.values():
        _look_at_text(_unescaped(text), walk)
    if isinstance(contents.root, _CONTAINERS):
        walk.places, walk.depth = _walk_containers(contents.root, walk)
    else:
        _look_at_leaf(contents.root, None, walk)
    return walk


_CONTAINERS = (dict, list, tuple, set, frozenset, Object)
_BOUND = 1 << 62


def _walk_containers(root: Value, walk: Walk) -> tuple[int, int]:
    """Return the places in a container and its depth."""
    # What is known of each container; one that is still open holds the current one.
    sizes: dict[int, tuple[int, int]] = {}
    waiting: list[tuple[Value, list[Value] | None]] = [(root, None)]
    while waiting:
        value, inside = waiting.pop()
        if inside is not None:
            sizes[id(value)] = _size(sizes[id(value)][0], inside, sizes)
        elif id(value) not in sizes:
            num_leaves, inside = _look_at(value, walk)
            sizes[id(value)] = (1 + num_leaves, 1 if num_leaves else 0)
            if inside:
                waiting.append((value, inside))
                waiting.extend((item, None) for item in inside)
    return sizes[id(root)]


def _size(places: int, inside: list[Value], sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the size of a container from that of what is inside."""
    depth = 0
    for item in inside:
        below, levels = sizes[id(item)]
        places += below
        depth = max(depth, levels)
    return min(places, _BOUND), depth + 1


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


def _look_at(value: Value, walk: Walk) -> tuple[int, list[Value]]:
    """Note what stands directly in a container; return how many leaves, and the containers."""
    if isinstance(value, dict) and _TARGET in value:
        for text in _texts(value[_TARGET]):
            _add_target(text, walk)
    given_to = value.callee if isinstance(value, Object) else None
    inside, num_leaves = [], 0
    for item in _parts(value):
        if isinstance(item, _CONTAINERS):
            inside.append(item)
            continue
        num_leaves += 1
        if isinstance(item, _LEAVES):
            _look_at_leaf(item, given_to, walk)
    return num_leaves, inside


def _texts(value: Value) -> list[str]:
    """Return the text that a setting is, plain or in an object of a library of settings."""
    if isinstance(value, Object):
        return [item for item in value.attributes.values() if isinstance(item, str)]
    return [value] if isinstance(value, str) else []


_LEAVES = (str, bytes, bytearray)


def _look_at_leaf(value: Value, given_to: Value, walk: Walk) -> None:
    if isinstance(value, str):
        if "target_" in value or "\\" in value:
            _look_at_text(_unescaped(value), walk)
    elif isinstance(value, bytes | bytearray) and _may_be_loaded(value):
        loader = str(given_to) if isinstance(given_to, Global) else ""
        if (id(value), loader) not in walk.given:
            walk.given.add((id(value), loader))
            walk.blobs.append((loader, bytes(value)))


def _look_at_text(text: str, walk: Walk) -> None:
    for found in _TARGET_IN_TEXT.findall(text[:_LONGEST_TEXT]):
        _add_target(found, walk)


def _unescaped(text: str) -> str:
    r"""Return a text with what JSON and YAML write as `\u005f` or `\x5f` spelt out."""
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), text[:_LONGEST_TEXT])


_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")


def _add_target(path: str, walk: Walk) -> None:
    # Many harmless ones must not hide one that is not.
    if len(walk.targets) < _MOST_TARGETS or danger(_target_name(path)):
        walk.targets.setdefault(path)


def _may_be_loaded(data: bytes | bytearray) -> bool:
    """Whether bytes start as a pickle of protocol 2 or newer does, or as an archive."""
    return (data[:1] == b"\x80" and data[1:2] <= b"\x05" and len(data) > 3) or data[:4] in (
        b"PK\x03\x04",
        b"7z\xbc\xaf",
    )
