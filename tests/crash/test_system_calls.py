"""A run that is killed, or that the system refuses, at each call by which it changes the disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.judge import judge
from crash.run import Given
from crash.scale import IS_ALL
from crash.victims import Outcome, Victims, spread
from saving.interrupted_saves import Place, injected

both_ways = pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])


def given_in(folder: Path, *, background: bool) -> Given:
    return Given(f"{folder}/run", f"{folder}/log", background=background)


@pytest.fixture
def places(traced: Victims, fresh: Callable[[], Path]) -> Callable[[bool], Iterator[Place]]:
    """Yields the calls of three saves by which the disk is changed."""

    def each(background: bool) -> Iterator[Place]:
        found = traced.places(given_in(fresh(), background=background))
        names = {place.name for place in found}
        assert {"openat", "pwrite64", "fsync", "rename", "unlinkat", "rmdir"} <= names
        yield from spread(found, 1000 if IS_ALL else 8)

    return each


@both_ways
def test_a_run_that_is_killed_goes_on(
    traced: Victims,
    places: Callable[[bool], Iterator[Place]],
    fresh: Callable[[], Path],
    tally: Callable[[str], None],
    background: bool,
) -> None:
    num_killed = num_temporaries = 0
    for place in places(background):
        given = given_in(fresh(), background=background)
        outcome = traced.run(given, *injected(place, "signal=SIGKILL"))
        assert outcome in (Outcome(killed=True), Outcome()), place
        verdict = judge(given.folder, given.log)
        num_killed += outcome.killed
        num_temporaries += verdict.num_temporaries
        tally(f"killed; found: {verdict.outcome}" if outcome.killed else "ended before the call")
    assert num_killed, "no run was ever killed; the test proves nothing"
    assert num_temporaries, "no temporary was ever left behind; the test proves nothing"


WORDS = {
    "EIO": r"\(Input/output error\)",
    "ENOSPC": r"the disk is full; nothing was changed\. Free|\(No space left on device\)",
}


def check_words(refusals: tuple[str, ...], error: str) -> None:
    """Check that each says what the system said, and names a checkpoint or the run."""
    for refusal in refusals:
        assert re.search(WORDS[error], refusal), refusal
        assert re.match(r"\w+: /\S+/run[:/]", refusal), refusal


@both_ways
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_run_whose_system_refuses_once_says_so_and_goes_on(
    traced: Victims,
    places: Callable[[bool], Iterator[Place]],
    fresh: Callable[[], Path],
    tally: Callable[[str], None],
    background: bool,
    error: str,
) -> None:
    num_refused = 0
    for place in places(background):
        given = given_in(fresh(), background=background)
        outcome = traced.run(given, *injected(place, f"error={error}"))
        assert not outcome.raised, f"{place}: {outcome.raised}"
        check_words(outcome.refusals, error)
        if background:
            assert traced.run(given) == Outcome(), place
        verdict = judge(given.folder, given.log)
        assert verdict.step == given.num_steps, place
        num_refused += bool(outcome.refusals)
        tally("said so, and went on" if outcome.refusals else "it made no difference")
    assert num_refused, "no run ever met an error; the test proves nothing"
