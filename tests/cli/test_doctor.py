from __future__ import annotations

import json
import os

import pytest

from cli_terminal import in_terminal
from made_runs import change_manifest, cut, flip, make_run
from torchkeep.cli import main


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", [0.3, 0.1])


def test_a_run_that_can_go_on_exits_with_0(run, capsys):
    assert main(["doctor", str(run)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{run}: it can go on bit for bit, as far as its files tell"
    assert rows[0].startswith("  note     step-00000002: a resume goes on from here: step 2, ")


@pytest.mark.parametrize(
    ("spoil", "code", "verdict"),
    [
        ("cut an old one", 5, "it can go on bit for bit, but not all of its checkpoints are whole"),
        ("inexact", 10, "it can go on, and may not be bit for bit what it would have been"),
        ("cut all", 10, "it can't go on here as it is"),
    ],
)
def test_the_worst_finding_makes_the_verdict_and_the_exit_code(run, capsys, spoil, code, verdict):
    cut(run / "step-00000001")
    if spoil == "cut all":
        cut(run / "step-00000002")
    elif spoil == "inexact":
        change_manifest(run / "step-00000002", inexact=["why \x1b[31m"])
    assert main(["doctor", str(run)]) == code
    output = capsys.readouterr().out
    assert output.splitlines()[0] == f"{run}: {verdict}"
    assert "damaged  step-00000001: model.safetensors has " in output
    assert "\x1b" not in output


def test_verify_reads_the_older_ones_too(run, capsys):
    flip(run / "step-00000001")
    assert main(["doctor", str(run)]) == 0
    assert main(["doctor", "--verify", str(run)]) == 5


def test_json_has_the_findings(run, capsys):
    assert main(["doctor", "--json", str(run)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["path"]) == (1, str(run))
    assert told["findings"][0]["rule"] == "newest"
    assert set(told["findings"][0]) == {"rule", "severity", "place", "text", "advice"}


def test_without_a_run_the_installation_is_told(capsys):
    assert main(["doctor"]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"python", "torch", "torchkeep", "machine", "num_threads", "cuda_devices"} <= set(rows)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_threads"] == int(rows["num_threads"])


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 10
    assert main(["doctor", str(tmp_path / "none")]) == 3


@pytest.mark.skipif(os.name == "nt", reason="there is no pty")
def test_lines_fit_a_terminal_of_80_columns(run):
    cut(run / "step-00000001")
    change_manifest(run / "step-00000002", inexact=["because of " + "many words " * 20])
    output = in_terminal("doctor", str(run))
    assert max(map(len, output.splitlines())) <= 80
