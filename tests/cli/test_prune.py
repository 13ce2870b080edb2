from __future__ import annotations

import pytest

from made_runs import cut, make_run
from torchkeep.checkpointing import list_checkpoints
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.cli import main


def left(run) -> list[int]:
    return [item.step for item in list_checkpoints(run)]


def test_what_goes_and_what_stays_is_said(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1, 0.2, 0.4])
    cut(run / "step-00000003")
    words = ["prune", str(run), "--keep-last", "1", "--keep-best", "val_loss:min"]
    assert main([*words, "--dry-run"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{run}: 1 checkpoint would go, ")
    assert head.endswith("kB free; 2 would stay, the one with the lowest val_loss among them")
    assert [row.split("  step-")[0].strip() for row in rows] == [
        "would go",
        "would stay",
        "would stay",
        "left",
    ]
    assert left(run) == [1, 2, 3, 4]
    assert main(words) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{run}: 1 checkpoint deleted, ")
    assert [row.split()[:2] for row in rows] == [
        ["deleted", "step-00000001"],
        ["kept", "step-00000002"],
        ["kept", "step-00000004"],
        ["left", "step-00000003"],
    ]
    assert "step 2, epoch 2, saved 20" in rows[1]
    assert "damaged: model.safetensors has " in rows[3]
    assert left(run) == [2, 3, 4]


def test_damaged_ones_go_if_it_is_asked_for(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    cut(run / "step-00000002")
    assert main(["prune", str(run), "--damaged"]) == 0
    assert left(run) == [1]
    cut(run / "step-00000001")
    capsys.readouterr()
    assert main(["prune", str(run), "--damaged"]) == 10
    assert "every checkpoint is damaged; nothing was deleted" in capsys.readouterr().err
    assert left(run) == [1]


def test_a_run_that_is_written_to_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    lock = RunLock(run)
    assert main(["prune", str(run), "--keep-last", "1"]) == 10
    lock.release()
    assert "writes to this run" in capsys.readouterr().err
    assert left(run) == [1, 2]


def test_nothing_is_deleted_without_a_word_about_what(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    assert main(["prune", str(run)]) == 12
    said = capsys.readouterr().err
    assert "nothing says what is to go. Give --keep-last N, or --damaged." in said
    for number in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            main(["prune", str(run), f"--keep-last={number}"])
        assert "is no number from 1 on" in capsys.readouterr().err
    assert left(run) == [1, 2]


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["prune", str(tmp_path), "--keep-last", "1"]) == 10
    assert "there is no checkpoint in it" in capsys.readouterr().err


def test_a_metric_that_no_checkpoint_has_is_not_said_to_be_kept(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    assert main(["prune", str(run), "--keep-last", "1", "--keep-best", "accuracy:max"]) == 0
    said = capsys.readouterr().out
    assert "none of them has the metric accuracy of a whole epoch" in " ".join(said.split())
    assert "among them" not in said
