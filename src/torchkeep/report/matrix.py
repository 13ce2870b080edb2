"""The confusion matrix: counts up to some dozens of classes, a picture up to a hundred or so."""

from __future__ import annotations

import math

from torchkeep.report.amounts import TIMES
from torchkeep.report.data import Confusion
from torchkeep.report.figures import Pair, confused_pairs, num_correct, num_samples
from torchkeep.report.markup import Markup, joined, name_of, tag
from torchkeep.report.tables import Column, folded, scrolling, table
from torchkeep.wording import counted, share, shortened

MOST_OPEN = 30
"""Up to so many classes the counts stand open in the page."""
MOST_DRAWN = 150
"""Up to so many classes there is a picture, and the counts in a folded table."""
_MOST_PAIRS = 12
_LEVELS = 10


def confusion_part(confusion: Confusion) -> Markup:
    """Return the matrix in the form that fits its size, and the most confused pairs."""
    size = len(confusion.classes)
    if size <= MOST_OPEN:
        pairs = _pairs(confusion, 10) if size > 2 else None
        return tag("div", _counts(confusion), pairs, class_="side-by-side")
    if size > MOST_DRAWN:
        return joined(_too_large(size), _pairs(confusion, 3 * _MOST_PAIRS))
    return joined(
        tag("div", _picture(confusion), _pairs(confusion, _MOST_PAIRS), class_="split"),
        folded(f"All {size} {TIMES} {size} counts", _counts(confusion)),
    )


def _too_large(size: int) -> Markup:
    matrix = f"A matrix of {size:,} {TIMES} {size:,}"
    text = f"{matrix} is too large to read; these are its largest mistakes."
    return tag("p", text, class_="quiet")


def level(part: int, whole: int, *, is_mistake: bool) -> int:
    """Return how strong a cell's colour is, from 0 for nothing to 10 for all of its row.

    Mistakes are rarer, so they are strengthened: a share of 4% is at level 2.
    """
    if not part:
        return 0
    strength = math.sqrt(part / whole) if is_mistake else part / whole
    return max(1, math.ceil(strength * _LEVELS - 1e-9))


def _shade(part: int, whole: int, *, is_mistake: bool) -> str:
    return f"{'m' if is_mistake else 'r'}{level(part, whole, is_mistake=is_mistake)}"


def _counts(confusion: Confusion) -> Markup:
    names = confusion.classes
    turned = any(len(name) > 3 for name in names)
    head = [
        tag("th", tag("span", name_of(name, 24)), scope="col", class_="turned" if turned else None)
        for name in names
    ]
    corner = tag("td", "true ↓", tag("br"), "predicted →", class_="corner")
    rows = [_row(confusion, true) for true in range(len(names))]
    return scrolling(
        "Counts",
        tag(
            "table",
            tag("caption", _caption(confusion)),
            tag("thead", tag("tr", corner, head)),
            tag("tbody", rows),
            class_="matrix dense" if len(names) > 16 else "matrix",
        ),
    )


def _caption(confusion: Confusion) -> Markup:
    right, total = num_correct(confusion), num_samples(confusion)
    return joined(
        "A row per true class, a column per predicted one. ",
        tag("span", "", class_="swatch r6"),
        " right, ",
        tag("span", "", class_="swatch m6"),
        f" wrong; the stronger, the larger the share of the row. {right:,} of {total:,} right"
        f"{f' ({share(right / total)})' if total else ''}.",
    )


def _row(confusion: Confusion, true: int) -> Markup:
    names, counts = confusion.classes, confusion.counts[true]
    support = sum(counts)
    cells = [
        tag("td", f"{count:,}", class_=_shade(count, support, is_mistake=predicted != true))
        if count
        else Markup("<td>·</td>" if predicted != true else '<td class="r0">0</td>')
        for predicted, count in enumerate(counts)
    ]
    return tag("tr", tag("th", name_of(names[true], 24), scope="row"), cells)


def _picture(confusion: Confusion) -> Markup:
    """Return the matrix as a square of cells, with the names of some classes beside it."""
    size = len(confusion.classes)
    cells = [
        _cell(confusion, true, predicted)
        for true, row in enumerate(confusion.counts)
        for predicted, count in enumerate(row)
        if count
    ]
    inner = tag("svg", cells, viewBox=f"0 0 {size} {size}", width="100%", height="100%")
    every = math.ceil(size / 20)
    labels = [
        tag("text", shortened(name, 14), x=-6, y=f"{(true + 0.5) / size * 100:.2f}%", dy=".33em")
        for true, name in enumerate(confusion.classes)
        if true % every == 0
    ]
    right, total = num_correct(confusion), num_samples(confusion)
    told = f"Confusion matrix of {counted(size, 'class')}: {right:,} of {total:,} right."
    svg = tag("svg", inner, labels, class_="cells", role="img", aria_label=told)
    note = f"One class in {every} is named; a cell's tooltip names its own."
    heading = tag("figcaption", _caption(confusion), " ", note if every > 1 else None)
    return tag("figure", heading, tag("div", svg, class_="square"))


def _cell(confusion: Confusion, true: int, predicted: int) -> Markup:
    names, row = confusion.classes, confusion.counts[true]
    count = row[predicted]
    told = f"{shortened(names[true])} taken for {shortened(names[predicted])}: {count:,}"
    right = f"{shortened(names[true])} recognised: {count:,}"
    return tag(
        "rect",
        tag("title", right if true == predicted else told),
        x=predicted,
        y=true,
        width=1,
        height=1,
        class_=_shade(count, sum(row), is_mistake=true != predicted),
    )


def _pairs(confusion: Confusion, most: int) -> Markup:
    pairs = confused_pairs(confusion, most)
    if not pairs:
        return tag("p", "No class was taken for another.")
    largest = pairs[0].count
    return table(
        "The most confused pairs",
        [
            Column("True class", is_name=True),
            Column("Taken for", is_name=True),
            Column("Times", is_number=True),
            Column("Of the class", is_number=True),
        ],
        [_pair(pair, largest) for pair in pairs],
    )


def _pair(pair: Pair, largest: int) -> list[Markup | str]:
    bar = tag("rect", width=f"{pair.count / largest * 100:.0f}%", height="100%", class_="m8")
    drawn = tag("svg", bar, class_="bar", aria_hidden="true")
    times = joined(drawn, tag("span", f"{pair.count:,}", class_="after"))
    return [name_of(pair.true, 60), name_of(pair.predicted, 60), times, _share_of(pair)]


def _share_of(pair: Pair) -> str:
    return share(pair.count / pair.support)
