"""What the retention rule keeps, for any set of checkpoints."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchkeep.checkpointing.runs.retention import Candidate, best_of, to_delete

METRICS = st.dictionaries(st.just("loss"), st.floats(allow_nan=True))


@st.composite
def runs(draw) -> list[Candidate]:
    rows = draw(st.lists(st.tuples(st.integers(0, 8), st.booleans(), METRICS), max_size=10))
    kept = [
        Candidate(f"{number}", step, number, is_whole, metrics)
        for number, (step, is_whole, metrics) in enumerate(rows, 1)
    ]
    return draw(st.permutations(kept))


LAST = st.one_of(st.none(), st.integers(0, 5))
BEST = st.one_of(st.none(), st.tuples(st.just("loss"), st.sampled_from(["min", "max"])))


@given(runs(), LAST, BEST)
def test_the_newest_whole_checkpoint_is_never_deleted(checkpoints, keep_last, keep_best):
    names = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    whole = [item for item in checkpoints if item.is_whole]
    if whole:
        assert max(whole, key=lambda item: item.serial).name not in names


@given(runs(), LAST, BEST)
def test_damaged_checkpoints_are_left_alone_and_count_for_nothing(
    checkpoints, keep_last, keep_best
):
    names = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    whole = [item for item in checkpoints if item.is_whole]
    assert names == to_delete(whole, keep_last=keep_last, keep_best=keep_best)
    assert set(names) <= {item.name for item in whole}


@given(runs(), st.integers(1, 5))
def test_the_newest_of_each_of_the_last_steps_are_kept(checkpoints, keep_last):
    names = to_delete(checkpoints, keep_last=keep_last)
    whole = sorted((item for item in checkpoints if item.is_whole), key=lambda item: item.serial)
    latest = {item.step: item.name for item in whole}
    left = [item for item in whole if item.name not in names]
    assert len(left) == min(keep_last, len(latest))
    assert {item.name for item in left} <= set(latest.values())


@given(runs(), LAST, BEST)
def test_the_best_is_kept(checkpoints, keep_last, keep_best):
    names = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    whole = sorted((item for item in checkpoints if item.is_whole), key=lambda item: item.serial)
    latest = list({item.step: item for item in whole}.values())
    rated = [m for item in latest for m in item.metrics.values() if m == m]
    if keep_best is not None and rated:
        best = best_of(latest, keep_best)
        assert best.name not in names
        assert best.metrics["loss"] == (min if keep_best[1] == "min" else max)(rated)


@given(runs(), LAST, BEST)
def test_a_second_look_deletes_nothing_more(checkpoints, keep_last, keep_best):
    names = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    left = [item for item in checkpoints if item.name not in names]
    assert to_delete(left, keep_last=keep_last, keep_best=keep_best) == []


def test_all_are_kept_on_request():
    checkpoints = [Candidate(str(step), step, step, True) for step in range(1, 9)]
    assert to_delete(checkpoints, keep_last=None) == []


def test_nothing_is_the_best_without_the_metric():
    assert best_of([Candidate("a", 1, 1, True, {"loss": float("nan")})], ("loss", "min")) is None


def test_an_inexact_checkpoint_does_not_take_the_place_of_an_exact_one():
    exact = [Candidate("a", 1, 1, True), Candidate("b", 1, 2, True)]
    inexact = [Candidate(f"{step}", step, step, True, is_exact=False) for step in range(3, 6)]
    assert to_delete([*exact, *inexact], keep_last=1) == ["a", "3", "4"]
