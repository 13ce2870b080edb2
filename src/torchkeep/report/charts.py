"""Curves as SVG.

The text keeps its size however wide the page is: what stands across is given in percent, and only
the lines are stretched, in an inner `svg` of `_WIDTH` units. Nothing has a `style` attribute, since
the page's own content security policy forbids it.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from itertools import groupby

from torchkeep.report.amounts import NOTHING, TIMES, number
from torchkeep.report.axes import Axis, axis, drawable, epoch_axis
from torchkeep.report.data import Best
from torchkeep.report.history import Panel, Series
from torchkeep.report.markup import Markup, joined, tag
from torchkeep.wording import counted, shortened

HEIGHT = 190
"""Pixels from the lowest to the highest value."""
_WIDTH = 1000
_MOST_DOTS = 30
_MOST_CROSSES = 100
_LONG = 200

_CLASSES = {"training": "t", "validation": "v"}


def chart(panel: Panel, epochs: Sequence[float], best: Best | None) -> Markup:
    """Return a panel as a figure: heading, legend, curves, and what is not in the picture.

    Args:
        panel: the curves.
        epochs: the number of each epoch, rising.
        best: the epoch to be marked, if it is one of them.
    """
    across = epoch_axis(epochs[0], epochs[-1])
    values = [value for one in panel.series for value in one.values if value is not None]
    up = axis(values, may_log=panel.may_log)
    picture = tag(
        "svg",
        _grid(up, across),
        [_curve(one, style(panel, one), epochs, across, up) for one in panel.series],
        _best(panel, epochs, across, up, best),
        class_="plot long" if len(epochs) > _LONG else "plot",
        width="100%",
        height=HEIGHT,
        role="img",
        aria_label=description(panel, epochs),
        data_hover=_hover(panel, epochs, across, up),
    )
    heading = tag("figcaption", tag("h3", shortened(panel.title)), _legend(panel, up))
    return tag("figure", heading, tag("div", picture, class_="frame"), _notes(panel, epochs))


def style(panel: Panel, one: Series) -> str:
    """Return the CSS class that gives a curve its colour and its dashes."""
    if one.role in _CLASSES and any(other.role != "other" for other in panel.series):
        return _CLASSES[one.role]
    if len(panel.series) == 1:
        return "v"
    return f"k{panel.series.index(one) % 8}"


def description(panel: Panel, epochs: Sequence[float]) -> str:
    """Return what a panel shows in words, for who can't see it."""
    return " ".join([f"{shortened(panel.title)} by epoch.", *_extremes(panel, epochs)])


def _extremes(panel: Panel, epochs: Sequence[float]) -> list[str]:
    told = []
    for one in panel.series:
        points = _points(one, epochs)
        if points:
            low, high = min(points, key=lambda at: at[1]), max(points, key=lambda at: at[1])
            told.append(
                f"{shortened(one.label)}: from {number(points[0][1])} to {number(points[-1][1])}, "
                f"lowest {number(low[1])} in epoch {number(low[0])}, "
                f"highest {number(high[1])} in epoch {number(high[0])}."
            )
        else:
            told.append(f"{shortened(one.label)}: no finite value.")
    return told


def _points(one: Series, epochs: Sequence[float]) -> list[tuple[float, float]]:
    pairs = zip(epochs, one.values, strict=True)
    return [(x, y) for x, y in pairs if y is not None and drawable(y) is not None]


def _grid(up: Axis, across: Axis) -> Markup:
    rows = [
        (
            tag("line", x1=0, x2="100%", y1=_y(up, tick), y2=_y(up, tick), class_="grid"),
            tag("text", up.label(tick), x=-8, y=_y(up, tick), dy=".33em", class_="up"),
        )
        for tick in up.ticks
    ]
    marks = [
        tag("text", across.label(tick), x=_x(across, tick), y=HEIGHT + 20, class_="across")
        for tick in across.ticks
    ]
    return joined(*rows, marks)


def _curve(one: Series, look: str, epochs: Sequence[float], across: Axis, up: Axis) -> Markup:
    """Return a line with a gap wherever a value is missing, and dots where there are few."""
    runs = _runs(one, epochs)
    lines = [
        tag("path", d=_path(run, across, up), vector_effect="non-scaling-stroke")
        for run in runs
        if len(run) > 1
    ]
    inner = tag(
        "svg",
        lines,
        viewBox=f"0 0 {_WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        width="100%",
        height=HEIGHT,
    )
    few = len(epochs) <= _MOST_DOTS
    dots = [
        tag("circle", cx=_x(across, x), cy=_y(up, y), r=3)
        for run in runs
        if few or len(run) == 1
        for x, y in run
    ]
    return tag("g", inner if lines else None, dots, _crosses(one, epochs, across), class_=look)


def _crosses(one: Series, epochs: Sequence[float], across: Axis) -> list[Markup]:
    bad = _not_finite(one, epochs)
    return [tag("text", TIMES, x=_x(across, x), y=12, class_="bad") for x in bad[:_MOST_CROSSES]]


def _not_finite(one: Series, epochs: Sequence[float]) -> list[float]:
    pairs = zip(epochs, one.values, strict=True)
    return [x for x, value in pairs if value is not None and drawable(value) is None]


def _runs(one: Series, epochs: Sequence[float]) -> list[list[tuple[float, float]]]:
    points = [
        (x, None if value is None else drawable(value))
        for x, value in zip(epochs, one.values, strict=True)
    ]
    grouped = groupby(points, key=lambda point: point[1] is None)
    return [[(x, y) for x, y in run if y is not None] for is_gap, run in grouped if not is_gap]


def _path(run: list[tuple[float, float]], across: Axis, up: Axis) -> Markup:
    places = [f"{across.place(x) * _WIDTH:.1f},{_y(up, y)}" for x, y in run]
    # Markup, since a text of a run would be cut.
    return Markup(f"M{' '.join(places)}")


def _best(
    panel: Panel, epochs: Sequence[float], across: Axis, up: Axis, best: Best | None
) -> Markup | None:
    if best is None or best.epoch not in epochs:
        return None
    place = across.place(best.epoch)
    x = _x(across, best.epoch)
    side = "left" if place < 0.2 else "right" if place > 0.8 else "middle"
    index = list(epochs).index(best.epoch)
    rings = [
        tag("circle", cx=x, cy=_y(up, value), r=6)
        for one in panel.series
        if one.name == best.metric
        and (value := one.values[index]) is not None
        and drawable(value) is not None
    ]
    return tag(
        "g",
        tag("line", x1=x, x2=x, y1=-4, y2=HEIGHT),
        tag("text", f"best: {best.epoch}", x=x, y=-9, class_=side),
        rings,
        class_="best",
    )


def _legend(panel: Panel, up: Axis) -> Markup:
    def sample(one: Series) -> Markup:
        line = tag("line", x1=1, x2=25, y1=5, y2=5)
        key = tag("svg", tag("g", line, class_=style(panel, one)), width=26, height=10)
        return tag("li", key, " ", tag("bdi", shortened(one.label, 40)))

    single = len(panel.series) == 1 and panel.series[0].role == "other"
    keys = None if single else tag("ul", map(sample, panel.series), class_="legend")
    scale = tag("span", "log scale", class_="quiet") if up.log else None
    return tag("div", scale, keys, class_="beside")


def _notes(panel: Panel, epochs: Sequence[float]) -> Markup | None:
    notes = []
    for one in panel.series:
        bad = _not_finite(one, epochs)
        if bad:
            named = ", ".join(number(epoch) for epoch in bad[:8])
            more = f" and {len(bad) - 8:,} more" if len(bad) > 8 else ""
            notes.append(f"{TIMES} {shortened(one.label)} is not finite in epoch {named}{more}.")
    if panel.num_left_out:
        notes.append(f"{counted(panel.num_left_out, 'curve')} more in the table.")
    return tag("p", " ".join(notes), class_="quiet") if notes else None


def _hover(panel: Panel, epochs: Sequence[float], across: Axis, up: Axis) -> Markup:
    """Return what the script shows under the pointer: texts and places, and no markup."""
    rows = [
        [number(epoch), round(across.place(epoch) * 100, 2), *_row(panel, index, up)]
        for index, epoch in enumerate(epochs)
    ]
    names = [shortened(one.label, 40) for one in panel.series]
    looks = [style(panel, one) for one in panel.series]
    return Markup(html.escape(json.dumps({"names": names, "looks": looks, "rows": rows})))


def _row(panel: Panel, index: int, up: Axis) -> list[list[object]]:
    row: list[list[object]] = []
    for one in panel.series:
        value = one.values[index]
        place = None if value is None else drawable(value)
        shown = NOTHING if value is None else number(value)
        row.append([shown, None if place is None else _y(up, place)])
    return row


def _x(across: Axis, value: float) -> str:
    return f"{across.place(value) * 100:.2f}%"


def _y(up: Axis, value: float) -> str:
    place = up.place(value)
    return f"{(1 - place) * HEIGHT:.1f}" if math.isfinite(place) else f"{HEIGHT}"
