from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.report import ClassFigures, Confusion, Pair, class_figures, confused_pairs
from torchkeep.report.figures import macro_mean, num_correct, num_samples, weighted_mean

ANIMALS = Confusion(
    ["cat", "dog", "eel", "fox"], [[8, 2, 0, 0], [1, 4, 0, 0], [3, 0, 0, 0], [0] * 4]
)


def test_figures_follow_from_the_counts():
    cat, dog, eel, fox = class_figures(ANIMALS)
    assert cat == ClassFigures("cat", 8 / 12, 8 / 10, 16 / 22, 10)
    assert dog == ClassFigures("dog", 4 / 6, 4 / 5, 8 / 11, 5)
    assert eel == ClassFigures("eel", None, 0.0, 0.0, 3)
    assert fox == ClassFigures("fox", None, None, None, 0)
    assert (num_correct(ANIMALS), num_samples(ANIMALS)) == (12, 18)


def test_means_are_of_the_classes_that_have_samples():
    figures = class_figures(ANIMALS)
    assert macro_mean(figures).recall == pytest.approx((0.8 + 0.8 + 0) / 3)
    assert weighted_mean(figures).recall == pytest.approx(12 / 18)
    assert macro_mean(figures).support == weighted_mean(figures).support == 18
    assert macro_mean([]).f1 is None
    assert weighted_mean(class_figures(Confusion(["a"], [[0]]))).precision is None


@settings(max_examples=15)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
def test_figures_are_those_of_scikit_learn(counts: list[list[int]]):
    metrics = pytest.importorskip("sklearn.metrics")
    size = len(counts)
    pairs = [(i, j) for i in range(size) for j in range(size) for _ in range(counts[i][j])]
    if not pairs:
        return
    true, predicted = zip(*pairs, strict=True)
    ours = class_figures(Confusion([str(i) for i in range(size)], counts))
    theirs = metrics.precision_recall_fscore_support(
        true, predicted, labels=range(size), zero_division=0
    )
    for one, (precision, recall, f1, support) in zip(ours, zip(*theirs, strict=True), strict=True):
        found = (one.precision or 0, one.recall or 0, one.f1 or 0, one.support)
        assert found == pytest.approx((precision, recall, f1, support))
    mean = weighted_mean(ours)
    weighted = metrics.precision_recall_fscore_support(
        true, predicted, average="weighted", zero_division=0
    )
    assert (mean.precision, mean.recall, mean.f1) == pytest.approx(weighted[:3])


def test_the_most_frequent_mistake_comes_first_and_then_the_largest_share():
    assert confused_pairs(ANIMALS, 9) == [
        Pair("eel", "cat", 3, 3),
        Pair("cat", "dog", 2, 10),
        Pair("dog", "cat", 1, 5),
    ]
    assert confused_pairs(ANIMALS, 1) == [Pair("eel", "cat", 3, 3)]
    tie = Confusion(["a", "b"], [[9, 1], [1, 0]])
    assert [pair.true for pair in confused_pairs(tie, 2)] == ["b", "a"]
    assert confused_pairs(Confusion(["a"], [[5]]), 3) == []
