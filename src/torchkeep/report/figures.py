"""Precision, recall and F1 per class, and who is taken for whom, from a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest

from torchkeep.report.data import Confusion


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How well one class is recognised; or, of a mean, all of them."""

    name: str
    """The class."""
    precision: float | None
    """Of what was predicted as this class, the share that is; None if it never was predicted."""
    recall: float | None
    """Of the class's samples, the share that was recognised; None if it has no samples."""
    f1: float | None
    """The harmonic mean of both; None if the class has no samples and was never predicted."""
    support: int
    """The class's samples."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A class that was taken for another."""

    true: str
    """What the samples are."""
    predicted: str
    """What they were taken for."""
    count: int
    """How many."""
    support: int
    """Samples of the true class in all."""


def class_figures(confusion: Confusion) -> list[ClassFigures]:
    """Return the figures of each class, in the order of the labels."""
    predicted = [sum(column) for column in zip(*confusion.counts, strict=True)]
    return [
        _of_class(name, row[label], sum(row), predicted[label])
        for label, (name, row) in enumerate(zip(confusion.classes, confusion.counts, strict=True))
    ]


def _of_class(name: str, hits: int, support: int, predicted: int) -> ClassFigures:
    return ClassFigures(
        name,
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        support=support,
    )


def macro_mean(figures: Sequence[ClassFigures]) -> ClassFigures:
    """Return the mean over the classes that have samples, each counting the same.

    A class that was never predicted has the precision 0 here.
    """
    seen = [one for one in figures if one.support]
    return _mean("Mean of classes", seen, [1] * len(seen))


def weighted_mean(figures: Sequence[ClassFigures]) -> ClassFigures:
    """Return the mean over the classes, each counting as many times as it has samples."""
    return _mean("Mean of samples", figures, [one.support for one in figures])


def _mean(name: str, figures: Sequence[ClassFigures], weights: Sequence[int]) -> ClassFigures:
    total = sum(weights)

    def mean(values: Sequence[float | None]) -> float | None:
        pairs = zip(values, weights, strict=True)
        return sum((value or 0.0) * weight for value, weight in pairs) / total if total else None

    return ClassFigures(
        name,
        precision=mean([one.precision for one in figures]),
        recall=mean([one.recall for one in figures]),
        f1=mean([one.f1 for one in figures]),
        support=sum(one.support for one in figures),
    )


def num_correct(confusion: Confusion) -> int:
    """Return how many samples were recognised."""
    return sum(row[label] for label, row in enumerate(confusion.counts))


def num_samples(confusion: Confusion) -> int:
    """Return how many samples were looked at."""
    return sum(map(sum, confusion.counts))


def confused_pairs(confusion: Confusion, most: int) -> list[Pair]:
    """Return up to `most` pairs of classes that were confused, the most frequent first.

    At equal counts the pair that is the larger share of its class comes first, then the order of
    the labels.
    """
    found = (
        (-count, -count / support, true, predicted)
        for true, row in enumerate(confusion.counts)
        if (support := sum(row))
        for predicted, count in enumerate(row)
        if count and true != predicted
    )
    names = confusion.classes
    return [
        Pair(names[true], names[predicted], -count, sum(confusion.counts[true]))
        for count, _, true, predicted in nsmallest(most, found)
    ]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
