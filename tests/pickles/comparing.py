"""Comparing what the machine read with what CPython's unpickler made of the same bytes."""

from __future__ import annotations

import collections
import math
from typing import Any

from torchkeep.contents import DictObject


def same(mine: Any, theirs: Any, _open: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Whether two values have the same types and content; cycles and NaN are equal to themselves.

    >>> same([1, {"a": math.nan}], [1, {"a": math.nan}]), same([1], [True])
    (True, False)
    """
    pair = (id(mine), id(theirs))
    if pair in _open:
        return True
    inside = _open | {pair}
    if isinstance(theirs, collections.OrderedDict):
        return isinstance(mine, DictObject) and same(list(mine.items()), list(theirs.items()))
    if isinstance(theirs, memoryview):  # READONLY_BUFFER
        theirs = bytearray(theirs)
    if type(mine) is not type(theirs):
        return False
    if isinstance(theirs, float):
        return _same_float(mine, theirs)
    if isinstance(theirs, complex):
        return _same_float(mine.real, theirs.real) and _same_float(mine.imag, theirs.imag)
    if isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(
            same(a, b, inside) for a, b in zip(mine, theirs, strict=True)
        )
    if isinstance(theirs, dict):
        return same(list(mine), list(theirs), inside) and same(
            list(mine.values()), list(theirs.values()), inside
        )
    if isinstance(theirs, set | frozenset):
        return len(mine) == len(theirs) and mine == theirs
    return bool(mine == theirs)


def _same_float(mine: float, theirs: float) -> bool:
    if math.isnan(theirs):
        return math.isnan(mine)
    return mine == theirs and math.copysign(1, mine) == math.copysign(1, theirs)
