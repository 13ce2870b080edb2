"""The calls of a run are recorded, and the power is cut after each one, on a disk in memory.

That needs no rights and no tools, and tries what a real file system does once in years.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.conftest import IS_ALL
from crash.disk import WAYS, Disk, Tree, lay_out, tree_of
from crash.judge import judge, read_log
from crash.recording import Call, Recorder
from crash.run import Given, Log, train

NUM_MIXED = 6
"""How many mixtures are tried after each call."""


@pytest.fixture(params=[True, False], ids=["background", "foreground"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Call], list[str]]:
    """The calls of a run, with a call of kind `told` for each line of its log."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    with pytest.MonkeyPatch.context() as patches:
        recorder = Recorder(disk, patches)
        say = Log._say

        def told(self: Log, line: str) -> None:
            say(self, line)
            recorder.calls.append(Call("told", line))

        patches.setattr(Log, "_say", told)
        given = Given(f"{disk}/run", f"{log}", background=request.param, width=SMALL)
        assert train(given) == []
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
            mark = hashlib.sha256(repr((tree, log)).encode()).digest()
            if mark not in seen:
                seen.add(mark)
                yield number, way, tree, log


def test_a_power_loss_after_any_call_costs_no_written_checkpoint(
    recorded: list[Call],
    fresh: Callable[[], Path],
    tally: Callable[[str], None],
) -> None:
    for trial, (number, way, tree, log) in enumerate(losses(recorded)):
        if not IS_ALL and trial % 29:
            continue
        folder = fresh()
        lay_out(tree, folder)
        (folder / "log").write_text(log)
        where = f"after call {number}, {recorded[number][:2]}, with {way} kept"
        try:
            verdict = judge(
                folder / "run", folder / "log", width=SMALL, may_be_damaged=True, goes_on=False
            )
        except Exception as error:
            error.add_note(where)
            raise
        tally(f"{verdict.outcome}; damaged and named: {len(verdict.damaged)}")
