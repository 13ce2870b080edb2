from __future__ import annotations

import json
import os

import pytest

from cli_terminal import in_terminal
from made_runs import change_manifest, cut, flip, make_run
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.cli import checkpoints, main

HOSTILE = "[red]\x1b[31m\n"


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_each_checkpoint_has_a_line_with_what_it_is(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1, 0.25])
    assert main(["runs", str(run), "--best", "val_loss:min"]) == 0
    head, titles, *rows = lines(capsys)
    assert head.startswith(f"{run}: 3 checkpoints, ")
    assert head.endswith(", best by lowest val_loss")
    titles = titles.split("  ")
    assert [title.strip() for title in titles if title.strip()] == [
        "checkpoint",
        "epoch",
        "saved (UTC)",
        "val_loss",
        "loss",
        "size",
        "health",
    ]
    cells = [row.split() for row in rows]
    assert [(row[0], row[1], row[4], row[5]) for row in cells] == [
        ("step-00000001", "1", "0.3", "1"),
        ("step-00000002", "2", "0.1", "1"),
        ("step-00000003", "3", "0.25", "1"),
    ]
    assert [row[8:] for row in cells] == [["ok"], ["ok,", "best"], ["ok,", "last"]]


def test_the_best_goes_by_what_the_run_itself_says(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    change_manifest(run / "step-00000002", keep_best=["val_loss", "max"])
    assert main(["runs", str(run)]) == 0
    head, _, first, second = lines(capsys)
    assert head.endswith(", best by highest val_loss")
    assert first.endswith("  ok, best")
    assert second.endswith("  ok, last")


def test_damaged_ones_are_shown_with_the_reason_and_exit_with_5(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    cut(run / "step-00000002")
    assert main(["runs", str(run)]) == 5
    head, _, first, second, why = lines(capsys)
    assert ", 1 damaged" in head
    assert first.endswith("  ok, last")
    assert second.endswith("damaged")
    assert why.startswith("  step-00000002: model.safetensors has ")


def test_only_verify_reads_every_byte(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    flip(run / "step-00000001")
    assert main(["runs", str(run)]) == 0
    capsys.readouterr()
    assert main(["runs", "--verify", str(run)]) == 5
    _, _, first, second, why = lines(capsys)
    assert first.endswith("damaged")
    assert second.endswith("  whole, last")
    assert (
        why == "  step-00000001: state.safetensors: tensor rng/torch differs from what was written"
    )


def test_batches_inexactness_and_a_writer_are_told_where_there_are_any(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3, 0.1])
    change_manifest(run / "step-00000002", batch=7, inexact=["why"])
    lock = RunLock(run)
    assert main(["runs", str(run)]) == 0
    lock.release()
    head, _, _, second = lines(capsys)
    assert head.endswith(" writes to it")
    assert second.split()[:2] == ["step-00000002", "2+7"]
    assert second.endswith("  ok, last, inexact")


def test_all_runs_below_a_folder_are_listed(tmp_path, capsys):
    for name in ("b", "a"):
        make_run(tmp_path / name, [0.3])
    assert main(["runs", str(tmp_path)]) == 0
    heads = [line for line in lines(capsys) if line.startswith(str(tmp_path))]
    assert [line.partition(":")[0] for line in heads] == [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_json_has_one_object_per_run(tmp_path, capsys):
    run = make_run(tmp_path / "a", [0.3, float("nan")])
    make_run(tmp_path / "b", [0.1])
    cut(run / "step-00000001")
    assert main(["runs", "--json", "--best", "val_loss:min", str(tmp_path)]) == 5
    a, b = map(json.loads, lines(capsys))
    assert (a["schema"], a["path"], a["writer"]) == (1, str(run), "")
    assert a["keep_best"] == ["val_loss", "min"]
    damaged, last = a["checkpoints"]
    assert (damaged["health"], damaged["problem"][:17]) == ("damaged", "model.safetensors")
    assert last["metrics"] == {"loss": 1.0, "val_loss": "nan"}
    assert (last["step"], last["is_last"], last["is_best"]) == (2, True, False)
    assert b["checkpoints"][0]["is_best"]


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["runs", str(tmp_path / "none")]) == 3
    assert main(["runs", str(tmp_path)]) == 10
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("none: there is no such folder. Check the path.")
    assert "there is no run in it, nor in the folders below it (4 levels)" in said[1]


@pytest.mark.parametrize("verb", ["runs", "resume", "prune --keep-last=1", "doctor"])
def test_without_torch_the_verbs_about_runs_say_what_is_missing(
    verb, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    assert main([*verb.split(), str(tmp_path)]) == 11
    name = verb.split()[0]
    assert capsys.readouterr().err == (
        f"torchkeep: torchkeep {name} needs torch, not installed here. "
        "Install it with: pip install 'torchkeep[torch]'\n"
    )


@pytest.mark.parametrize("rule", ["val_loss", "val_loss:least", ":min", ""])
def test_a_rule_that_is_none_is_a_wrong_command_line(rule, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--best", rule, str(tmp_path)])
    assert ended.value.code == 2
    assert "is no rule: write METRIC:min or METRIC:max" in capsys.readouterr().err


def test_what_a_manifest_says_is_escaped_and_cut(tmp_path, capsys):
    run = make_run(tmp_path / "run", [0.3])
    change_manifest(
        run / "step-00000001",
        metrics={HOSTILE: 1.0, "x" * 5000: HOSTILE, "y": [1]},
        date=HOSTILE * 100,
        inexact=[HOSTILE],
        keep_best=[HOSTILE, "min"],
    )
    assert main(["runs", str(run)]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert len(output.splitlines()) == 3
    assert max(map(len, output.splitlines())) < 300
    assert main(["runs", "--json", str(run)]) == 0


@pytest.mark.skipif(os.name == "nt", reason="there is no pty")
def test_a_terminal_of_80_columns_has_the_metrics_that_fit(tmp_path):
    run = make_run(tmp_path / "run", [0.123456, 0.1])
    for number in (1, 2):
        metrics = {f"metric_number_{n}": 0.123456 for n in range(6)} | {"val_loss": 0.123456}
        change_manifest(run / f"step-0000000{number}", metrics=metrics)
    output = in_terminal("runs", "--best", "val_loss:min", str(run))
    assert max(map(len, output.splitlines())) <= 80
    titles = next(line for line in output.splitlines() if "checkpoint  " in line)
    assert titles.split()[:6] == ["checkpoint", "epoch", "saved", "(UTC)", "val_loss", "size"]
    for number in (1, 2):
        change_manifest(run / f"step-0000000{number}", metrics={"loss": 0.12345, "val_loss": 1.0})
    output = in_terminal("runs", "--best", "val_loss:min", str(run))
    assert max(map(len, output.splitlines())) <= 80
    assert "  val_loss    loss  " in output
