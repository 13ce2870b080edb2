"""The part of the page about the classes: their figures, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence

from torchkeep.report.amounts import NOTHING
from torchkeep.report.data import Confusion
from torchkeep.report.figures import ClassFigures, class_figures, macro_mean, weighted_mean
from torchkeep.report.markup import Markup, joined, name_of, tag
from torchkeep.report.tables import LONG, Column, folded, table
from torchkeep.wording import share

_NUM_WORST = 15


def figures_part(confusion: Confusion) -> Markup:
    """Return precision, recall and F1 per class; of many classes the worst ones first."""
    figures = class_figures(confusion)
    if len(figures) <= LONG:
        return _table("Precision, recall and F1 of each class", figures, figures)
    worst = sorted((one for one in figures if one.f1 is not None), key=lambda one: one.f1 or 0.0)
    few = worst[:_NUM_WORST]
    return joined(
        _table(f"The {len(few)} classes with the lowest F1", few, figures),
        folded(
            f"All {len(figures):,} classes",
            _table("Precision, recall and F1 of each class", figures, figures),
        ),
    )


def _table(caption: str, rows: Sequence[ClassFigures], of_all: Sequence[ClassFigures]) -> Markup:
    means = [macro_mean(of_all), weighted_mean(of_all)]
    return table(
        caption,
        [
            Column("Class", is_name=True),
            Column("Precision", is_number=True),
            Column("Recall", is_number=True),
            Column("F1", is_number=True),
            Column("Samples", is_number=True),
        ],
        [[name_of(one.name, 60), *_cells(one)] for one in rows],
        foot=[[one.name, *_cells(one)] for one in means],
    )


def _cells(one: ClassFigures) -> list[Markup | str]:
    f1 = _percent(one.f1)
    return [_percent(one.precision), _percent(one.recall), _bar(one.f1, f1), f"{one.support:,}"]


def _percent(value: float | None) -> str:
    return NOTHING if value is None else share(value)


def _bar(value: float | None, text: str) -> Markup:
    rect = tag("rect", width=f"{(value or 0) * 100:.1f}%", height="100%", class_="r8")
    return joined(
        tag("svg", rect, class_="bar", aria_hidden="true"), tag("span", text, class_="after")
    )
