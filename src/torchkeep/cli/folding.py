"""Long lists of tensor names, folded to the few patterns that they follow.

A deep network repeats itself: `layers.0.weight`, `layers.1.weight`, ... of the same shape are one
row, `layers.{0...11}.weight`. A fold stands for exactly the names that went into it, and
`Fold.expand` gives them back.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

Shared = TypeVar("Shared", bound=Hashable)
"""What the names of a row have in common, such as dtype and shape."""
Part = str | range | tuple[str, ...]
"""A piece of a name: fixed, a number from a range, or one of several endings."""
Box = tuple[range, ...]
"""One range for each number in a name."""

MAX_ENDINGS = 6
"""Endings in one row; more are hard to read."""

MAX_NUMBERS = 8
"""Numbers of a name that are folded; the cost grows with their square."""

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
"""A number as programs write it. With a leading zero it would not come back from a range."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One pattern, and the names that it stands for."""

    parts: tuple[Part, ...]
    """What its names are joined from, in order."""

    def __str__(self) -> str:
        return "".join(_pattern(part) for part in self.parts)

    def __len__(self) -> int:
        """Return how many names it stands for."""
        return prod(1 if isinstance(part, str) else len(part) for part in self.parts)

    def expand(self) -> list[str]:
        """Return the names that it stands for.

        >>> Fold(("layer", range(1, 3), ".", ("weight", "bias"))).expand()
        ['layer1.weight', 'layer1.bias', 'layer2.weight', 'layer2.bias']
        """
        choices = ((part,) if isinstance(part, str) else part for part in self.parts)
        return ["".join(map(str, chosen)) for chosen in itertools.product(*choices)]


def _pattern(part: Part) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, range):
        return str(part[0]) if len(part) == 1 else f"{{{part[0]}...{part[-1]}}}"
    return f"{{{','.join(part)}}}"


def fold(names: Mapping[str, Shared]) -> list[tuple[Fold, Shared]]:
    """Return patterns that together stand for every name once, each with what its names share.

    Args:
        names: each name with what must be equal for names to share a row.

    Returns:
        The patterns, in the order in which the first name of each came.

    >>> rows = fold({"a.0.w": 3, "a.0.b": 1, "a.1.w": 3, "a.1.b": 1, "out.w": 5})
    >>> [(str(pattern), shared) for pattern, shared in rows]
    [('a.{0...1}.w', 3), ('a.{0...1}.b', 1), ('out.w', 5)]
    >>> [str(pattern) for pattern, _ in fold({"bn1.weight": 64, "bn1.bias": 64, "fc.bias": 10})]
    ['bn1.{weight,bias}', 'fc.bias']
    """
    kinds = _kinds(names)
    # Names that differ in nothing but their numbers, which are the points of a grid.
    grids: dict[tuple[tuple[str, ...], Shared, int], dict[tuple[int, ...], int]] = {}
    for place, (name, shared) in enumerate(names.items()):
        literals, numbers = _split(name)
        grids.setdefault((literals, shared, kinds[_stem(name)]), {})[numbers] = place
    rows = [
        (place, _weave(literals, box), shared)
        for (literals, shared, _), points in grids.items()
        for box, place in _boxes(points)
    ]
    rows.sort(key=lambda row: row[0])
    return list(_join_endings((parts, shared) for _, parts, shared in rows))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _kinds(names: Iterable[str]) -> dict[str, int]:
    """Return a number for each stem, equal where the endings are: a BatchNorm is no Conv2d.

    Without it the bias of a convolution would share a row with that of the norm which follows it.
    """
    endings: dict[str, set[str]] = {}
    for name in names:
        endings.setdefault(_stem(name), set()).add(name.rpartition(".")[2])
    numbers: dict[frozenset[str], int] = {}
    return {
        stem: numbers.setdefault(frozenset(found), len(numbers)) for stem, found in endings.items()
    }


def _split(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the texts around the numbers of a name, and the numbers."""
    if "{" in name or "}" in name:  # would read like a pattern
        return (name,), ()
    pieces = _NUMBER.split(name, MAX_NUMBERS)
    return tuple(pieces[::2]), tuple(map(int, pieces[1::2]))


def _weave(literals: tuple[str, ...], box: Box) -> tuple[Part, ...]:
    """Put the ranges between the texts again."""
    parts: list[Part] = [literals[0]]
    for span, literal in zip(box, literals[1:], strict=True):
        parts += [span, literal]
    return tuple(parts)


def _boxes(points: Mapping[tuple[int, ...], int]) -> list[tuple[Box, int]]:
    """Cover the points exactly by boxes that don't overlap, each with its least value.

    Along one axis after the other, the innermost first, boxes that are equal on all other axes
    and follow each other on this one become one.
    """
    boxes = {tuple(range(x, x + 1) for x in point): place for point, place in points.items()}
    for axis in reversed(range(len(next(iter(boxes))))):
        lines: dict[tuple[Box, Box], list[tuple[range, int]]] = {}
        for box, place in boxes.items():
            lines.setdefault((box[:axis], box[axis + 1 :]), []).append((box[axis], place))
        boxes = {
            (*before, span, *after): place
            for (before, after), spans in lines.items()
            for span, place in _runs(spans)
        }
    return list(boxes.items())


def _runs(spans: list[tuple[range, int]]) -> list[tuple[range, int]]:
    """Join ranges that follow each other, and keep the least value of each run."""
    runs: list[tuple[range, int]] = []
    for span, place in sorted(spans, key=lambda item: item[0].start):
        if runs and runs[-1][0].stop == span.start:
            before, least = runs.pop()
            runs.append((range(before.start, span.stop), min(least, place)))
        else:
            runs.append((span, place))
    return runs


def _join_endings(
    rows: Iterable[tuple[tuple[Part, ...], Shared]],
) -> Iterator[tuple[Fold, Shared]]:
    """Join rows that differ in what follows their last dot, and in nothing else."""
    families: dict[tuple[tuple[Part, ...], str, Shared, int], list[str]] = {}
    sizes: dict[tuple[tuple[Part, ...], str, Shared], int] = {}
    for parts, shared in rows:
        stem, ending = _split_ending(str(parts[-1]))
        family = (parts[:-1], stem, shared)
        size = sizes[family] = sizes.get(family, -1) + 1
        families.setdefault((*family, size // MAX_ENDINGS), []).append(ending)
    for (parts, stem, shared, _), endings in families.items():
        tail = (stem + endings[0],) if len(endings) == 1 else (stem, tuple(endings))
        yield Fold((*parts, *tail)), shared


def _split_ending(text: str) -> tuple[str, str]:
    """Split after the last dot, unless the ending would make a list of endings ambiguous."""
    stem, dot, ending = text.rpartition(".")
    return (text, "") if set(ending) & set("{,}") else (stem + dot, ending)
