"""Runs below a folder, and what their checkpoints say."""

from __future__ import annotations

import os

import pytest

from made_runs import change_manifest, cut, flip, make_run
from torchkeep.checkpointing import find_runs, look_at_run
from torchkeep.checkpointing.runs.overview import check_run, is_run
from torchkeep.errors import CheckpointProblem, FileMissing, NoCheckpoint


def test_runs_are_found_a_few_levels_below_a_folder(tmp_path):
    one = make_run(tmp_path / "a" / "one", [0.1])
    two = make_run(tmp_path / "two", [0.1])
    inner = make_run(two / "fold", [0.1])
    make_run(tmp_path / "1" / "2" / "3" / "4" / "deep", [0.1])
    assert find_runs(tmp_path) == [one, two, inner]
    assert find_runs(two) == [two, inner]
    assert find_runs(tmp_path, max_depth=1) == [two]
    assert len(find_runs(tmp_path, max_depth=5)) == 4


def test_links_and_hidden_folders_are_not_looked_into(tmp_path):
    run = make_run(tmp_path / "real" / "run", [0.1])
    make_run(tmp_path / "here" / ".trash" / "run", [0.1])
    (tmp_path / "here" / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NoCheckpoint):
        find_runs(tmp_path / "here")
    assert find_runs(tmp_path / "here" / "link") == [tmp_path / "here" / "link" / "run"]
    assert run.is_dir()


def test_a_folder_of_somebody_elses_steps_is_no_run(tmp_path):
    (tmp_path / "step-00000100").mkdir()
    (tmp_path / "step-00000100.pth").write_bytes(b"theirs")
    assert not is_run(tmp_path)
    (tmp_path / ".lock").touch()  # a run of ours leaves one, and may have lost its manifests
    assert is_run(tmp_path)


def test_what_is_no_run_is_told_with_what_may_have_been_meant(tmp_path):
    run = make_run(tmp_path / "runs" / "a", [0.1])
    for place, error, text in (
        (tmp_path / "none", FileMissing, "there is no such folder"),
        (run / "step-00000001" / "manifest.json", CheckpointProblem, "this is a file"),
        (run / "step-00000001", NoCheckpoint, f"name the run's folder, {run}."),
        (tmp_path / "runs", NoCheckpoint, f"There is a run below it: {run}."),
    ):
        with pytest.raises(error, match=text):
            check_run(place)
    make_run(tmp_path / "runs" / "b", [0.1])
    with pytest.raises(NoCheckpoint, match=f"There is a run below it: {run}, and 1 more."):
        check_run(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCheckpoint, match="there is no run in it, nor in the folders below it"):
        find_runs(tmp_path / "empty")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    tmp_path.chmod(0)
    with pytest.raises(CheckpointProblem, match="it can't be read"):
        find_runs(tmp_path)
    tmp_path.chmod(0o700)


def test_the_last_and_the_best_of_a_run_are_whole_ones(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    found = look_at_run(run, best=("val_loss", "min"))
    assert [item.step for item in found.checkpoints] == [1, 2, 3]
    assert (found.last.step, found.best.step) == (3, 2)
    cut(run / "step-00000002")
    cut(run / "step-00000003")
    found = look_at_run(run, best=("val_loss", "min"))
    assert (found.last.step, found.best.step) == (1, 1)
    assert look_at_run(run, best=("val_loss", "max")).best.step == 1
    assert look_at_run(run, best=("accuracy", "max")).best is None
    assert look_at_run(run).best is None


def test_the_best_of_an_epoch_that_is_not_over_does_not_count(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1])
    change_manifest(run / "step-00000002", batch=1)
    assert look_at_run(run, best=("val_loss", "min")).best.step == 1


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        (["val_loss", "min"], ("val_loss", "min")),
        (["val_loss", "least"], None),
        ([["val_loss"], "min"], None),
        ("min", None),
        (None, None),
    ],
)
def test_what_the_run_keeps_the_best_by_is_taken_from_its_newest_checkpoint(tmp_path, said, rule):
    run = make_run(tmp_path, [0.1, 0.2])
    change_manifest(run / "step-00000001", keep_best=["loss", "max"])
    change_manifest(run / "step-00000002", keep_best=said)
    assert look_at_run(run).keep_best == rule
    assert look_at_run(run, best=("a", "min")).keep_best == ("a", "min")


def test_only_reading_every_byte_finds_a_flipped_bit(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    flip(run / "step-00000002")
    assert look_at_run(run).last.step == 2
    found = look_at_run(run, verify=True)
    assert found.is_verified
    assert found.last.step == 1
    problem = "state.safetensors: tensor rng/torch differs from what was written"
    assert found.checkpoints[1].problem == problem


def test_a_file_that_checkpoints_share_counts_once(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    before = look_at_run(run).nbytes
    assert before == sum(file.stat().st_size for file in run.glob("step-*/*"))
    one, other = (run / f"step-0000000{number}" / "extra" for number in (1, 2))
    one.write_bytes(b"x" * 1000)
    os.link(one, other)
    assert look_at_run(run).nbytes == before + 1000
