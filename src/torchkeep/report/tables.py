"""Tables: with a caption, heads with a scope, numbers to the right, long ones folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchkeep.report.markup import Child, Markup, tag

LONG = 40
"""Rows from which on a table is folded."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's head, and how its cells stand."""

    title: str
    """What it says at the top."""
    is_number: bool = False
    """Aligned to the right, in figures of equal width."""
    is_name: bool = False
    """A name that may be long, and is broken anywhere."""
    is_code: bool = False
    """In a typewriter face."""


def table(
    caption: Child,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Child]],
    *,
    foot: Sequence[Sequence[Child]] = (),
    row_classes: Sequence[str | None] = (),
) -> Markup:
    """Return a table whose rows begin with their head.

    Args:
        caption: what it shows; every table has one.
        columns: one per cell of a row.
        rows: the cells of each row.
        foot: rows that sum up, at the end.
        row_classes: a CSS class per row, or none at all.
    """
    looks = row_classes or [None] * len(rows)
    body = [_row(columns, row, look) for row, look in zip(rows, looks, strict=True)]
    head = [tag("th", column.title, scope="col", class_=_look(column)) for column in columns]
    found = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", head)),
        tag("tbody", body),
        tag("tfoot", [_row(columns, row, None) for row in foot]) if foot else None,
        class_="rows",
    )
    return scrolling(caption, found)


def _row(columns: Sequence[Column], cells: Sequence[Child], look: str | None) -> Markup:
    first, *rest = cells
    head = tag("th", first, scope="row", class_=_look(columns[0]))
    pairs = zip(columns[1:], rest, strict=True)
    return tag("tr", head, [tag("td", cell, class_=_look(one)) for one, cell in pairs], class_=look)


def _look(column: Column) -> str | None:
    named = {"n": column.is_number, "name": column.is_name, "code": column.is_code}
    return " ".join(key for key, is_so in named.items() if is_so) or None


def scrolling(label: Child, content: Markup) -> Markup:
    """Return a part that scrolls by itself if it is too wide, with the keyboard, too."""
    name = label if label and not isinstance(label, Markup) else "Table"
    return tag("div", content, class_="scroll", role="region", aria_label=name, tabindex=0)


def folded(summary: Child, *content: Child, is_open: bool = False) -> Markup:
    """Return a part that is unfolded by a click."""
    return tag("details", tag("summary", summary), *content, open="" if is_open else None)


def folded_if_long(summary: str, num_rows: int, content: Markup) -> Markup:
    """Return a table as it is, or folded if it has more than `LONG` rows."""
    return content if num_rows <= LONG else folded(summary, content)
