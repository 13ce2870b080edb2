"""Runs that are killed with SIGKILL and resumed equal those that never stopped, bit for bit."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from functools import cache
from pathlib import Path

import pytest

from checkpointing import exact_run

# Children are forked from a server that has loaded PyTorch once, and _dynamo, which an optimizer
# loads. (It does not see pytest's sys.path, so the script itself can't be loaded beforehand.)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numpy", "torch", "torch._dynamo", "torchkeep.checkpointing"])


def launch(folder: Path, **options) -> int:
    """Run to the end or to death, and return the exit status."""
    process = CONTEXT.Process(target=exact_run.main, args=(exact_run.Given(folder, **options),))
    process.start()
    process.join(60)
    status = process.exitcode
    # A worker that was forked just as its parent died never notices, and would stay for ever.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert status in (0, -signal.SIGKILL)
    return status


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def order(folder: Path) -> list[dict]:
    """Return what the run saw, the last time that it saw it."""
    lines = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    seen: dict[tuple, dict] = {}
    for line in lines:
        seen[line["epoch"], tuple(line["indices"])] = line
    return sorted(seen.values(), key=lambda line: (line["epoch"], line["indices"]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    @cache
    def uninterrupted(**options) -> Path:
        folder = tmp_path_factory.mktemp("reference")
        assert launch(folder, **options) == 0
        return folder

    return uninterrupted


EVERYWHERE = [
    *(f"batch:{number}" for number in range(15)),
    *(f"step:{number}" for number in range(1, 16)),
    *(f"evaluation:{epoch}" for epoch in range(3)),
]


# Checkpoints are made after steps 2, 4, ... and at the ends of the epochs, at 5, 10 and 15.
@pytest.mark.parametrize("die_at", EVERYWHERE)
def test_a_run_killed_anywhere_ends_like_one_that_was_never_killed(tmp_path, reference, die_at):
    number = EVERYWHERE.index(die_at)
    optimizer, workers = ("adamw", "sgd")[number % 2], (0, 2)[number // 2 % 2]
    # The reference loads its samples in the main process: workers may not matter either.
    expected = reference(optimizer=optimizer)
    options = {"optimizer": optimizer, "workers": workers}
    assert launch(tmp_path, **options, die_at=die_at) == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    assert launch(tmp_path, **options) == 0
    assert result(tmp_path) == result(expected)
    assert order(tmp_path) == order(expected)


@pytest.mark.parametrize("die_at", ["batch:2", "step:3", "evaluation:1"])
def test_a_run_killed_within_an_accumulation_repeats_the_whole_of_it(tmp_path, reference, die_at):
    options = {"accumulate": 2, "every_steps": 1}
    expected = reference(**options)
    assert launch(tmp_path, **options, die_at=die_at) == -signal.SIGKILL
    assert launch(tmp_path, **options) == 0
    assert result(tmp_path) == result(expected)


def test_a_resumed_run_repeats_nothing_that_was_saved(tmp_path):
    launch(tmp_path, die_at="step:7")
    before = len((tmp_path / "trace.jsonl").read_text().splitlines())
    launch(tmp_path)
    after = len((tmp_path / "trace.jsonl").read_text().splitlines())
    assert before == 7
    assert after - before == 15 - 6


def test_a_run_resumes_with_another_number_of_workers(tmp_path, reference):
    launch(tmp_path, workers=2, die_at="step:7")
    launch(tmp_path, workers=1)
    assert result(tmp_path) == result(reference(optimizer="adamw"))
