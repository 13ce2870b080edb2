"""Old checkpoints go, and what is needed stays."""

from __future__ import annotations

import os
import shutil

import pytest

from made_runs import change_manifest, cut, flip, make_run
from torchkeep.checkpointing import list_checkpoints, prune
from torchkeep.checkpointing.layout import damage
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.errors import CheckpointProblem, NoCheckpoint


def steps(items) -> list[int]:
    return [item.step for item in items]


def left(run) -> list[int]:
    return steps(list_checkpoints(run))


def test_the_newest_and_the_best_stay(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2, 0.5])
    report = prune(run, keep_last=1, keep_best=("val_loss", "min"))
    assert left(run) == [2, 4]
    assert (steps(report.deleted), steps(report.kept)) == ([1, 3], [2, 4])
    assert report.is_done
    assert not damage(run / "step-00000004")


def test_the_best_stays_by_the_runs_own_rule(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2, 0.5])
    change_manifest(run / "step-00000004", keep_best=["val_loss", "min"])
    assert prune(run, keep_last=1).keep_best == ("val_loss", "min")
    assert left(run) == [2, 4]


def test_a_dry_run_deletes_nothing_and_tells_the_same(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    planned = prune(run, keep_last=1, dry_run=True)
    assert left(run) == [1, 2, 3]
    assert not planned.is_done
    done = prune(run, keep_last=1)
    assert (done.deleted, done.kept, done.nbytes) == (
        planned.deleted,
        planned.kept,
        planned.nbytes,
    )


def test_the_bytes_are_those_that_come_free(tmp_path):
    run = make_run(tmp_path / "run", [0.3, 0.1, 0.2])
    shared, other = (run / f"step-0000000{n}" / "model.safetensors" for n in (1, 3))
    other.unlink()
    os.link(shared, other)
    change_manifest(other.parent, files=_files_of(run, 1) | {"state.safetensors": _state(run, 3)})
    expected = sum(
        file.stat().st_size
        for name in ("step-00000001", "step-00000002")
        for file in (run / name).iterdir()
    )
    report = prune(run, keep_last=1)
    assert steps(report.kept) == [3]
    assert report.nbytes == expected - other.stat().st_size


def _files_of(run, step):
    from torchkeep.checkpointing.layout import read_manifest

    return read_manifest(run / f"step-{step:08d}")["files"]


def _state(run, step):
    return _files_of(run, step)["state.safetensors"]


def test_damaged_ones_are_left_unless_they_are_asked_for(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    cut(run / "step-00000001")
    report = prune(run, keep_last=1)
    assert left(run) == [1, 3]
    assert [item.problem[:17] for item in report.damaged] == ["model.safetensors"]
    report = prune(run, damaged=True)
    assert left(run) == [3]
    assert steps(report.deleted) == [1]


def test_without_a_number_only_damaged_ones_go(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    cut(run / "step-00000002")
    prune(run, damaged=True)
    assert left(run) == [1, 3]


def test_one_that_is_found_damaged_while_it_is_read_counts_for_nothing(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    flip(run / "step-00000003")
    report = prune(run, keep_last=1)
    assert steps(report.kept) == [2]
    assert steps(report.damaged) == [3]
    assert left(run) == [2, 3]


def test_the_best_is_read_too(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2, 0.5, 0.6])
    flip(run / "step-00000002")
    prune(run, keep_last=1, keep_best=("val_loss", "min"))
    assert left(run) == [2, 3, 5]


@pytest.mark.parametrize("spoil", [cut, flip])
def test_nothing_goes_where_nothing_is_whole(tmp_path, spoil):
    run = make_run(tmp_path, [0.3, 0.1])
    for item in list_checkpoints(run):
        spoil(item.path)
    with pytest.raises(CheckpointProblem, match="every checkpoint is damaged; nothing was deleted"):
        prune(run, keep_last=1, damaged=True)
    assert left(run) == [1, 2]


def test_the_last_exact_one_stays_beside_a_newer_inexact_one(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    change_manifest(run / "step-00000003", inexact=["saved within a step"])
    prune(run, keep_last=1)
    assert left(run) == [2, 3]


def test_a_run_that_is_written_to_is_refused(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1])
    lock = RunLock(run)
    with pytest.raises(CheckpointProblem, match="writes to this run"):
        prune(run, keep_last=1)
    assert left(run) == [1, 2]
    assert steps(prune(run, keep_last=1, dry_run=True).deleted) == [1]
    lock.release()
    prune(run, keep_last=1)
    RunLock(run).release()  # it gave the lock back


def test_a_folder_that_is_no_run_is_left_as_it_is(tmp_path):
    with pytest.raises(NoCheckpoint):
        prune(tmp_path, keep_last=1)
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_write_left_goes_as_well(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1])
    shutil.copytree(run / "step-00000001", run / ".step-00000009.torchkeep-tmp-0123456789ab")
    prune(run, keep_last=2, dry_run=True)
    assert len(list(run.glob(".step*"))) == 1
    prune(run, keep_last=2)
    assert list(run.glob(".step*")) == []


def test_a_run_goes_on_after_it_was_pruned(tmp_path):
    run = make_run(tmp_path, [0.3, 0.1, 0.2])
    prune(run, keep_last=1)
    make_run(run, [0.3, 0.1, 0.2, 0.4])
    assert left(run) == [3, 4]


def test_a_checkpoint_of_a_newer_version_is_not_taken_for_a_damaged_one(tmp_path):
    run = make_run(tmp_path / "run", [0.3, 0.2])
    change_manifest(run / "step-00000002", version=2)
    done = prune(run, damaged=True)
    assert done.deleted == ()
    assert (run / "step-00000002").is_dir()


def test_of_a_link_itself_is_deleted(tmp_path):
    run, other = make_run(tmp_path / "run", [0.3, 0.2]), make_run(tmp_path / "other", [0.3])
    (run / "step-00000001").rename(tmp_path / "moved")
    (run / "step-00000001").symlink_to(other / "step-00000001")
    assert [item.step for item in prune(run, keep_last=1).deleted] == [1]
    assert (other / "step-00000001" / "manifest.json").is_file()
    assert not (run / "step-00000001").is_symlink()
