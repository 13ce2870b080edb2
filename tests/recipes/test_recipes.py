"""The recipes of `docs/recipes.md` resume exactly: their code runs, is killed, and runs again."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from functools import cache
from pathlib import Path

import pytest

from recipes import recipe_run

PACKAGES = {
    "accelerate": "accelerate",
    "Lightning": "lightning",
    "The Trainer of transformers": "transformers",
}
CONTEXT = multiprocessing.get_context("forkserver")


def launch(folder: Path, **options) -> int:
    """Run to the end or to death, and return the exit status."""
    process = CONTEXT.Process(target=recipe_run.main, args=(recipe_run.Given(folder, **options),))
    process.start()
    process.join(300)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode


def outcome(folder: Path) -> tuple[dict, set]:
    """Return the digests that a run ended with, and the loss of each batch in all its processes."""
    lines = map(json.loads, (folder / "trace.jsonl").read_text().splitlines())
    return json.loads((folder / "result.json").read_text()), {tuple(line) for line in lines}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    @cache
    def uninterrupted(recipe: str) -> Path:
        pytest.importorskip(PACKAGES[recipe])
        folder = tmp_path_factory.mktemp("reference")
        assert launch(folder, recipe=recipe) == 0
        return folder

    return uninterrupted


# Six batches make an epoch, two a step, and each second step is saved: at the batches 4, 8, 12, 16.
@pytest.mark.parametrize(("die_at", "workers"), [(7, 2), (11, 0), (13, 2), (18, 0)])
@pytest.mark.parametrize("recipe", PACKAGES)
def test_a_recipe_resumes_exactly(tmp_path, reference, recipe, die_at, workers):
    expected = reference(recipe)
    options = {"recipe": recipe, "workers": workers, "die_at": die_at}
    assert launch(tmp_path, **options) == -signal.SIGKILL
    assert launch(tmp_path, **options) == 0
    assert outcome(tmp_path) == outcome(expected)
    seen = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert len(seen) < 18 + die_at, "it began anew"
