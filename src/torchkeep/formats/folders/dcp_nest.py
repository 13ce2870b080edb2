"""The nested state dict of a distributed checkpoint, made from a flat one.

PyTorch has the way to each value, and nothing of mappings without items, nor whether a key was a
number: `{"state": {0: ...}}` is `{"state": {"0": ...}}` afterwards, and `{"state": {}}` is `{}`. A
checkpoint that torchkeep wrote tells of both under SHAPE, so that an optimizer's state stays one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from torchkeep.contents import Value
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.metadata import RESERVED
from torchkeep.formats.plain_json import parse_json

Way = tuple[str | int, ...]
"""The way to a value: keys, and places in lists."""

SHAPE = f"{RESERVED}shape"
"""Metadata key of what PyTorch does not keep of a state dict: a JSON object of lists of ways."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What PyTorch does not keep of a nested state dict."""

    empty: tuple[Way, ...] = ()
    """The mappings without items."""
    numbered: tuple[Way, ...] = ()
    """The mappings whose keys are whole numbers; the keys on the way are texts."""

    def to_json(self) -> str:
        """Return it as a text."""
        return json.dumps({"empty": self.empty, "numbered": self.numbered}, separators=(",", ":"))


def told_shape(text: str | None) -> Shape:
    """Return what a checkpoint tells; what makes no sense tells nothing."""
    try:
        table = parse_json(text or "{}")
    except DamagedFile:
        return Shape()
    ways = table if isinstance(table, dict) else {}
    return Shape(tuple(_ways(ways.get("empty"))), tuple(_ways(ways.get("numbered"))))


def _ways(value: Value) -> Iterable[Way]:
    for way in value if isinstance(value, list) else ():
        if isinstance(way, list) and way and all(type(part) in (str, int) for part in way):
            yield tuple(way)


class Nest:
    """A nest of dicts and lists, filled as PyTorch does: an int in a path is a place in a list.

    Args:
        room: how many places its lists may have together; in an honest one each is some value's.

    Attributes:
        root: the outermost dict.
    """

    def __init__(self, room: int) -> None:
        self.root: dict[Value, Value] = {}
        self.room = room

    def put(self, path: Way, value: Value) -> bool:
        """Set a value; return False if something else stands in the way."""
        at: Value = self.root
        for part, following in pairwise(path):
            if not self.reach(at, part):
                return False
            held = at[part]
            if held is None:
                held = at[part] = [] if isinstance(following, int) else {}
            at = held
        if not self.reach(at, path[-1]) or at[path[-1]] is not None:
            return False
        at[path[-1]] = value
        return True

    def reach(self, at: Value, part: str | int) -> bool:
        """Have a place for a part of a path; return False if this is not what it needs."""
        if isinstance(part, str):
            return type(at) is dict and at.setdefault(part, None) is at[part]
        more = part + 1 - len(at) if type(at) is list else 0
        if type(at) is not list or part < 0 or more > self.room:
            return False
        self.room -= max(more, 0)
        at.extend([None] * more)
        return True

    def reshape(self, shape: Shape) -> None:
        """Add the mappings without items, and make numbers of the keys that were some."""
        for way in shape.empty:
            self.put(way, {})
        for way in sorted(shape.numbered, key=len, reverse=True):  # the inner ones first
            table = self.at(way)
            if type(table) is dict and all(map(_is_number, table)):
                items = [(int(key), item) for key, item in table.items()]
                table.clear()
                table.update(items)

    def at(self, way: Way) -> Value:
        """Return what a way leads to; None if it leads nowhere."""
        at: Value = self.root
        for part in way:
            if isinstance(at, dict):
                at = at.get(part)
            elif type(at) is list and isinstance(part, int) and 0 <= part < len(at):
                at = at[part]
            else:
                return None
        return at


def _is_number(key: Value) -> bool:
    """Whether a text is a whole number as Python writes it."""
    digits = key.removeprefix("-") if isinstance(key, str) else ""
    return digits.isascii() and digits.isdecimal() and len(digits) < 20 and str(int(key)) == key
