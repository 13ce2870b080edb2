"""A run that is killed, or that the system refuses, at each call by which it changes the disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.judge import judge
from crash.run import WAYS_OF_SAVING, Given
from crash.scale import IS_ALL
from crash.victims import Outcome, Victims, spread
from saving.interrupted_saves import Place, injected

all_ways = pytest.mark.parametrize("way", WAYS_OF_SAVING)


def given_in(folder: Path, way: str) -> Given:
    return Given(f"{folder}/run", f"{folder}/log", **WAYS_OF_SAVING[way])


@pytest.fixture
def places(traced: Victims, fresh: Callable[[], Path]) -> Callable[[str], Iterator[Place]]:
    """Yields the calls of three saves by which the disk is changed."""

    def each(way: str) -> Iterator[Place]:
        found = traced.places(given_in(fresh(), way))
        names = {place.name for place in found}
        of_folders = {"rename", "unlinkat", "rmdir"} if way != "pth" else {"link", "unlink"}
        assert {"openat", "pwrite64", "fsync", *of_folders} <= names
        yield from spread(found, 1000 if IS_ALL else 5)

    return each


@all_ways
def test_a_run_that_is_killed_goes_on(
    traced: Victims,
    places: Callable[[str], Iterator[Place]],
    fresh: Callable[[], Path],
    tally: Callable[[str], None],
    way: str,
) -> None:
    num_killed = num_temporaries = 0
    for place in places(way):
        given = given_in(fresh(), way)
        outcome = traced.run(given, *injected(place, "signal=SIGKILL"))
        assert outcome in (Outcome(killed=True), Outcome()), place
        verdict = judge(given.folder, given.log, kind=given.kind)
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


@all_ways
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_run_whose_system_refuses_once_says_so_and_goes_on(
    traced: Victims,
    places: Callable[[str], Iterator[Place]],
    fresh: Callable[[], Path],
    tally: Callable[[str], None],
    way: str,
    error: str,
) -> None:
    num_refused = 0
    for place in places(way):
        given = given_in(fresh(), way)
        outcome = traced.run(given, *injected(place, f"error={error}"))
        assert not outcome.raised, f"{place}: {outcome.raised}"
        check_words(outcome.refusals, error)
        if given.background:
            assert traced.run(given) == Outcome(), place
        verdict = judge(given.folder, given.log, kind=given.kind)
        assert verdict.step == given.num_steps, place
        num_refused += bool(outcome.refusals)
        tally("said so, and went on" if outcome.refusals else "it made no difference")
    assert num_refused, "no run ever met an error; the test proves nothing"
