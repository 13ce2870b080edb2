"""Runs that are killed with SIGKILL and resumed equal those that never stopped, bit for bit.

`make test-exact` kills every kind of run at every place. Here one kind is, and the others are
killed a few times in one run, each at other places.
"""

from __future__ import annotations

import json
import signal
from functools import cache
from pathlib import Path

import pytest

from checkpointing.exact_matrix import (
    CELLS,
    differences,
    killed_and_resumed,
    launch,
    places,
    reference_of,
    result,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    @cache
    def uninterrupted(options: str) -> Path:
        folder = tmp_path_factory.mktemp("reference")
        assert launch(folder, **json.loads(options)) == 0
        return folder

    return lambda **options: uninterrupted(json.dumps(reference_of(options), sort_keys=True))


EVERYWHERE = [
    *(f"batch {epoch}.{number}" for epoch in range(3) for number in range(5)),
    *(f"step {number}" for number in range(1, 16)),
    *(f"evaluation {epoch}" for epoch in range(3)),
]


# Checkpoints are made after steps 2, 4, ... and at the ends of the epochs, at 5, 10 and 15.
@pytest.mark.parametrize("place", EVERYWHERE)
def test_a_run_killed_anywhere_ends_like_one_that_was_never_killed(tmp_path, reference, place):
    number = EVERYWHERE.index(place)
    options = {"optimizer": ("adamw", "sgd")[number % 2], "workers": (0, 2)[number // 2 % 2]}
    killed_and_resumed(tmp_path, [place], **options)
    assert differences(tmp_path, reference(**options)) == []


@pytest.mark.parametrize("cell", CELLS)
def test_every_kind_of_run_may_be_killed_again_and_again(tmp_path, reference, cell):
    expected = reference(**CELLS[cell])
    # Twelve places apart, and each kind begins with another one.
    first = list(CELLS).index(cell) % 12
    killed_and_resumed(tmp_path, places(expected)[first::12], **CELLS[cell])
    assert differences(tmp_path, expected) == []


def test_a_resumed_run_repeats_nothing_that_was_saved(tmp_path):
    options = {"background": False}  # so that what was due is there when the run is killed
    launch(tmp_path, **options, die_at=("step 7",))
    before = len((tmp_path / "trace.jsonl").read_text().splitlines())
    launch(tmp_path, **options)
    after = len((tmp_path / "trace.jsonl").read_text().splitlines())
    assert before == 7
    assert after - before == 15 - 6


def test_a_run_resumes_with_another_number_of_workers(tmp_path, reference):
    assert launch(tmp_path, workers=2, die_at=("step 7",)) == -signal.SIGKILL
    launch(tmp_path, workers=1)
    assert result(tmp_path) == result(reference())
