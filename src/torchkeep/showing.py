"""Values of a file, made fit for a screen: escaped and cut.

Names and values of a model file are written by strangers. A terminal obeys escape sequences, and
a reader believes line breaks, so nothing of a file reaches a screen or a message but through here,
or through `wording.printable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torchkeep.contents import Array, DictObject, Global, Object, TensorEntry
from torchkeep.wording import counted, printable

MAX_LENGTH = 160
"""Characters of one text that are shown before it is cut."""
MAX_ITEMS = 8
"""Items of one list or dict that are shown before it is cut."""
MAX_DEPTH = 3
"""Lists within lists that are shown."""
MAX_BITS = 4096
"""Integers above are described; Python refuses to write really long ones."""


def clip(text: str, limit: int = MAX_LENGTH) -> str:
    """Return `text` escaped, and cut after `limit` characters with a note of its length.

    >>> clip("x" * 5000, limit=3)
    'xxx... (5,000 characters)'
    """
    if len(text) <= limit:
        return printable(text)
    return f"{printable(text[:limit])}... ({len(text):,} characters)"


def elide(name: str, limit: int = MAX_LENGTH) -> str:
    """Return a name escaped, without its middle if it is long: a tensor's ends in what it is.

    >>> elide("encoder." + "x" * 5000 + ".weight", limit=20)
    'encoder.xx...x.weight'
    """
    if len(name) <= limit:
        return printable(name)
    return f"{printable(name[: limit // 2])}...{printable(name[-(limit * 2 // 5) :])}"


def show(value: object, *, depth: int = MAX_DEPTH) -> str:
    """Return an inert value as a person would write it down, on one short line.

    >>> show(0.1), show("Adam"), show((0.9, 0.999)), show({"lr": None})
    ('0.1', 'Adam', '(0.9, 0.999)', '{lr: None}')
    >>> show(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, 6, 7, ... (1,000 items)]'
    """
    if isinstance(value, str):
        return clip(value) if value else '""'
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"(an integer of {value.bit_length():,} bits)"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return _show_collection(value, depth)
    if isinstance(value, TensorEntry):
        return f"tensor {value.dtype} {shape(value.shape)}"
    if isinstance(value, Array):
        return f"array {value.dtype} {shape(value.shape)}"
    if isinstance(value, Object):
        return f"{clip(value.class_path)}(...)"
    if isinstance(value, Global):
        return clip(str(value))
    return clip(repr(value))


def _show_collection(value: dict[object, object] | Iterable[object], depth: int) -> str:
    name = f"{clip(value.class_path)} " if isinstance(value, DictObject) else ""
    left, right = _BRACKETS.get(type(value), ("{", "}"))
    items = list(value.items()) if isinstance(value, dict) else [(None, item) for item in value]
    if not items:
        return name + left + right
    if depth == 0:
        return f"{name}{left}... ({counted(len(items), 'item')}){right}"
    shown = [
        (f"{show(key, depth=0)}: " if isinstance(value, dict) else "") + show(item, depth=depth - 1)
        for key, item in items[:MAX_ITEMS]
    ]
    if len(items) > MAX_ITEMS:
        shown.append(f"... ({counted(len(items), 'item')})")
    return name + left + ", ".join(shown) + right


_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}


def shape(sizes: tuple[int, ...]) -> str:
    """Return a tensor's sizes as PyTorch writes them.

    >>> shape((64, 3, 7, 7)), shape(())
    ('[64, 3, 7, 7]', '[]')
    """
    return f"[{', '.join(str(size) for size in sizes)}]"


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> Iterator[str]:
    """Yield rows of cells as lines, each column as wide as it needs to be.

    Args:
        rows: the cells; a cell has no line break.
        right: the columns whose cells stand to the right.
    """
    at_right = set(right)
    cells = [[elide(cell, 60) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        parts = [
            cell.rjust(width) if number in at_right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(["", *parts]).rstrip()
