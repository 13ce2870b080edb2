"""The calls of a run are recorded, and the power is cut after each one, on a disk in memory.

That needs no rights and no tools, and tries what a real file system does once in years.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from crash.disk import WAYS, Disk, Tree, lay_out, tree_of
from crash.judge import judge
from crash.recording import Call, Recorder
from crash.run import WAYS_OF_SAVING, Given, Kind, Log, train
from crash.scale import IS_ALL
from torchkeep.errors import TorchkeepError

NUM_MIXED = 40 if IS_ALL else 6
"""How many mixtures are tried after each call."""


@pytest.fixture
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Given:
    """A run that saves in one of the ways, on a disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    way = WAYS_OF_SAVING[request.param]
    return Given(f"{disk}/run", f"{tmp_path}/log", width=SMALL, **way)


@pytest.fixture
def recorded(given: Given) -> list[Call]:
    """The calls of a run, with a call of kind `told` for each line of its log."""
    disk = Path(given.folder).parent
    with pytest.MonkeyPatch.context() as patches:
        recorder = Recorder(disk, patches)
        say = Log._say

        def told(self: Log, line: str) -> None:
            say(self, line)
            recorder.calls.append(Call("told", line))

        patches.setattr(Log, "_say", told)
        for num_steps in (2, 4):  # the second run resumes the first one
            assert train(replace(given, num_steps=num_steps)) == []
    replayed = Disk()
    for call in recorder.calls:
        if call.kind != "told":
            replayed.do(call)
    left = replayed.after_power_loss("all", random.Random(0))
    assert left == tree_of(disk), "the recorder missed a call"
    return recorder.calls


SMALL = 16


def losses(calls: list[Call]) -> Iterator[tuple[int, str, Tree, str]]:
    """Yield each state of a disk that a power loss can leave, once, and what was told so far."""
    disk, log, seen = Disk(), "", set()
    for number, call in enumerate(calls):
        if call.kind == "told":
            log += str(call.target)
        else:
            disk.do(call)
        chance = random.Random(number)
        for way in (*WAYS, *["mixed"] * (NUM_MIXED - 1)):
            tree = disk.after_power_loss(way, chance)
            mark = hash((frozenset(tree.items()), log))
            if mark not in seen:
                seen.add(mark)
                yield number, way, tree, log


def is_marked(path: str, mark: str) -> bool:
    name = Path(path).name
    return mark in name if mark != "folder" else ".safetensors" not in name and ".json" not in name


def check(
    calls: list[Call], kind: Kind, place: Callable[[], Path], tally: Callable[[str], None]
) -> None:
    """Judge the states that a power loss can leave: all of them, or every so many."""
    every = 1 if IS_ALL else 29
    for number, way, tree, log in islice(losses(calls), 0, None, every):
        folder = place()
        lay_out(tree, folder)
        (folder / "log").write_text(log)
        try:
            verdict = judge(folder / "run", folder / "log", width=SMALL, kind=kind, goes_on=False)
        except (AssertionError, TorchkeepError) as error:
            error.add_note(f"after call {number}, {calls[number][:2]}, with {way} kept")
            raise
        left = "with temporaries" if verdict.num_temporaries else "without temporaries"
        tally(f"{verdict.outcome}, {left}")


@pytest.mark.parametrize("given", WAYS_OF_SAVING, indirect=True)
def test_a_power_loss_after_any_call_costs_no_written_checkpoint(
    given: Given, recorded: list[Call], fresh: Callable[[], Path], tally: Callable[[str], None]
) -> None:
    check(recorded, given.kind, fresh, tally)


@pytest.mark.parametrize("given", ["background", "foreground"], indirect=True)
@pytest.mark.parametrize("mark", [".safetensors", ".json", "folder"])
def test_this_finds_out_who_does_not_sync(
    given: Given, recorded: list[Call], fresh: Callable[[], Path], mark: str
) -> None:
    paths = {call.value[0]: str(call.target) for call in recorded if call.kind == "open"}
    left = [
        call
        for call in recorded
        if call.kind != "sync" or not is_marked(paths[int(call.target)], mark)
    ]
    assert len(left) < len(recorded)
    with pytest.raises((AssertionError, TorchkeepError)):
        check(left, given.kind, fresh, lambda _: None)
