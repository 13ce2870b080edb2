"""What the retention rule keeps, for any set of checkpoints."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from torchkeep.checkpointing.runs.checkpoints import Checkpoint
from torchkeep.checkpointing.runs.retention import best_of, to_delete

METRICS = st.dictionaries(st.just("loss"), st.floats(allow_nan=True))


@st.composite
def runs(draw) -> list[Checkpoint]:
    rows = draw(st.lists(st.tuples(st.integers(0, 8), st.booleans(), METRICS), max_size=10))
    kept = [
        Checkpoint(Path(f"{number}"), step, number, "" if is_whole else "cut", metrics=metrics)
        for number, (step, is_whole, metrics) in enumerate(rows, 1)
    ]
    return draw(st.permutations(kept))


LAST = st.one_of(st.none(), st.integers(0, 5))
BEST = st.one_of(st.none(), st.tuples(st.just("loss"), st.sampled_from(["min", "max"])))


@given(runs(), LAST, BEST)
def test_the_newest_whole_checkpoint_is_never_deleted(checkpoints, keep_last, keep_best):
    doomed = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    whole = [item for item in checkpoints if not item.problem]
    if whole:
        assert max(whole, key=lambda item: item.serial) not in doomed


@given(runs(), LAST, BEST)
def test_damaged_checkpoints_are_left_alone_and_count_for_nothing(
    checkpoints, keep_last, keep_best
):
    doomed = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    whole = [item for item in checkpoints if not item.problem]
    assert doomed == to_delete(whole, keep_last=keep_last, keep_best=keep_best)
    assert all(item in whole for item in doomed)


@given(runs(), st.integers(1, 5))
def test_the_newest_of_each_of_the_last_steps_are_kept(checkpoints, keep_last):
    doomed = to_delete(checkpoints, keep_last=keep_last)
    whole = sorted((item for item in checkpoints if not item.problem), key=lambda item: item.serial)
    latest = {item.step: item for item in whole}
    left = [item for item in whole if item not in doomed]
    assert len(left) == min(keep_last, len(latest))
    assert all(item in latest.values() for item in left)


@given(runs(), LAST, BEST)
def test_the_best_is_kept(checkpoints, keep_last, keep_best):
    doomed = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    whole = sorted((item for item in checkpoints if not item.problem), key=lambda item: item.serial)
    latest = list({item.step: item for item in whole}.values())
    rated = [m for item in latest for m in item.metrics.values() if m == m]
    if keep_best is not None and rated:
        best = best_of(latest, keep_best)
        assert best not in doomed
        assert best.metrics["loss"] == (min if keep_best[1] == "min" else max)(rated)


@given(runs(), LAST, BEST)
def test_a_second_look_deletes_nothing_more(checkpoints, keep_last, keep_best):
    doomed = to_delete(checkpoints, keep_last=keep_last, keep_best=keep_best)
    left = [item for item in checkpoints if item not in doomed]
    assert to_delete(left, keep_last=keep_last, keep_best=keep_best) == []


def test_all_are_kept_on_request():
    checkpoints = [Checkpoint(Path(str(step)), step, step) for step in range(1, 9)]
    assert to_delete(checkpoints, keep_last=None) == []


def test_nothing_is_the_best_without_the_metric():
    assert (
        best_of([Checkpoint(Path("a"), 1, 1, metrics={"loss": float("nan")})], ("loss", "min"))
        is None
    )


def test_an_inexact_checkpoint_does_not_take_the_place_of_an_exact_one():
    exact = [Checkpoint(Path("a"), 1, 1), Checkpoint(Path("b"), 1, 2)]
    inexact = [Checkpoint(Path(f"{n}"), n, n, inexact=("why",)) for n in range(3, 6)]
    doomed = to_delete([*exact, *inexact], keep_last=1)
    assert [item.path.name for item in doomed] == ["a", "3", "4"]
