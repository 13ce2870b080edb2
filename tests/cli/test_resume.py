from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from made_runs import change_manifest, cut, make_run
from torchkeep.checkpointing.layout import read_state
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.cli import main, resume

PROGRAM = """\
import os
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

import torchkeep

folder, stop_at = sys.argv[1], int(os.environ.get("STOP_AT", "-1"))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
optimizer = torch.optim.Adam(model.parameters())
loader = DataLoader(TensorDataset(torch.randn(12, 2)), 2, shuffle=True)
with torchkeep.Checkpointer(folder, model=model, optimizer=optimizer, every_steps=2) as ckpt:
    print("from", ckpt.resumed_from and ckpt.resumed_from.step, sys.argv[2:], flush=True)
    for epoch in ckpt.epochs(2):
        for (inputs,) in ckpt.batches(loader):
            if ckpt.num_steps == stop_at:
                ckpt.wait()
                os._exit(9)
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
            ckpt.step()
"""


@pytest.fixture
def run(tmp_path):
    """Return a run that says it was made by a program in `tmp_path`."""
    return made_by(make_run(tmp_path / "run", [0.3, 0.1]), tmp_path)


def made_by(run: Path, cwd: Path, **facts) -> Path:
    command = {
        "argv": ["python", "train.py", "--name", "a b"],
        "executable": sys.executable,
        "cwd": str(cwd),
        "run": str(run),
    }
    for checkpoint in run.glob("step-*"):
        change_manifest(checkpoint, command=command | facts)
    return run


@pytest.fixture
def started(monkeypatch) -> list[tuple[str, list[str], str]]:
    """Return the programs that are started from now on, which do not run."""
    programs: list[tuple[str, list[str], str]] = []
    monkeypatch.setattr(resume.os, "chdir", lambda path: programs.append(("", [], str(path))))

    def execv(program, argv):
        programs[-1] = (program, argv, programs[-1][2])
        raise OSError(8, "Exec format error")

    monkeypatch.setattr(resume.os, "execv", execv)
    return programs


def answer(monkeypatch, text: str, *, is_terminal: bool = True) -> None:
    stdin = io.StringIO(text)
    stdin.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdin", stdin)


def test_the_program_goes_on_and_ends_like_one_that_was_never_killed(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)

    def train(folder: str, **environment: str) -> int:
        words = [sys.executable, "train.py", folder, "a b"]
        return subprocess.run(words, cwd=tmp_path, env={**os.environ, **environment}).returncode

    assert train("runs/whole") == 0
    assert train("runs/killed", STOP_AT="9") == 9
    words = [sys.executable, "-m", "torchkeep", "resume", "--yes", "runs/killed"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "runs/killed: goes on from step-00000008"
    assert said[-2:] == [
        f"  {sys.executable} train.py runs/killed 'a b'",
        "from 8 ['a b']",
    ]
    last = "step-00000012-2"
    states = [read_state(tmp_path / "runs" / name / last) for name in ("whole", "killed")]
    assert fingerprint(states[0]["objects"]) == fingerprint(states[1]["objects"])


def test_without_a_terminal_and_without_yes_it_is_only_shown(run, tmp_path, started, capsys):
    assert main(["resume", str(run)]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines()[-2:] == [
        f"  cd {tmp_path}",
        f"  {sys.executable} train.py --name 'a b'",
    ]
    assert "there is no terminal to ask at, and --yes is not given" in told.err
    assert started == []


@pytest.mark.parametrize("text", ["n\n", "\n", "", "yesterday\n"])
def test_anything_but_a_yes_is_a_no(run, started, monkeypatch, text, capsys):
    answer(monkeypatch, text)
    assert main(["resume", str(run)]) == 0
    assert started == []
    assert capsys.readouterr().out.endswith("Run it? [y/N] ")


@pytest.mark.parametrize("text", ["y\n", "Yes\n"])
def test_after_a_yes_it_is_started_where_it_was(run, tmp_path, started, monkeypatch, text, capsys):
    answer(monkeypatch, text)
    assert main(["resume", str(run)]) == 10  # since it does not start here
    assert started == [
        (sys.executable, [sys.executable, "train.py", "--name", "a b"], str(tmp_path))
    ]
    assert "can't be started (Exec format error)" in capsys.readouterr().err


def test_a_yes_in_a_pipe_is_none(run, started, monkeypatch):
    answer(monkeypatch, "y\n", is_terminal=False)
    assert main(["resume", str(run)]) == 2
    assert started == []


@pytest.mark.skipif(os.name == "nt", reason="there is no pty")
def test_it_asks_at_a_real_terminal(run, tmp_path):
    (tmp_path / "train.py").write_text("import sys; print('started with', sys.argv[1:])\n")
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "torchkeep", "resume", str(run)]
    with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, text=True) as child:
        os.write(ours, b"y\n")
        output = child.communicate()[0]
    os.close(ours)
    os.close(theirs)
    assert child.returncode == 0
    assert output.endswith("Run it? [y/N] started with ['--name', 'a b']\n")


def test_damaged_checkpoints_that_are_newer_are_named(run, started, capsys):
    cut(run / "step-00000002")
    main(["resume", str(run)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{run}: goes on from step-00000001"
    assert said[1].startswith("  step 1, epoch 1, saved 20")
    assert said[2] == "Newer ones, or of unknown age, are damaged and will be skipped:"
    assert said[3].startswith("  step-00000002: model.safetensors has ")


def test_what_is_different_now_is_said_first(run, started, capsys):
    change_manifest(run / "step-00000002", versions={"numpy": "0.1"}, inexact=["why"])
    main(["resume", str(run)])
    said = capsys.readouterr().out
    assert "  inexact  step-00000002: why." in said
    assert "  note     numpy was 0.1 and is " in said


def test_a_run_that_is_written_to_is_refused(run, started, capsys):
    lock = RunLock(run)
    assert main(["resume", "--yes", str(run)]) == 10
    lock.release()
    assert "writes to this run. Stop it first." in capsys.readouterr().err
    assert started == []


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_with(run, started, capsys):
    for checkpoint in run.glob("step-*"):
        cut(checkpoint)
    assert main(["resume", "--yes", str(run)]) == 10
    assert "every checkpoint is damaged (step-00000002: " in capsys.readouterr().err
    assert started == []


def test_a_run_that_does_not_say_how_it_was_started_is_told(run, started, capsys):
    change_manifest(run / "step-00000002", command=None)
    assert main(["resume", "--yes", str(run)]) == 10
    said = capsys.readouterr().err
    assert "the checkpoint does not say how the run was started" in said
    assert "Start the program in the way in which it was; it goes on by itself." in said


def test_a_run_that_was_moved_would_not_be_gone_on_with(run, tmp_path, started, capsys):
    other = run.rename(tmp_path / "copy")
    assert main(["resume", "--yes", str(other)]) == 10
    said = capsys.readouterr().err
    assert f"its program writes to {run}, and would not go on with this folder" in said
    assert started == []


def test_a_folder_or_an_interpreter_that_is_gone_is_told(run, tmp_path, started, capsys):
    made_by(run, tmp_path / "gone")
    assert main(["resume", "--yes", str(run)]) == 10
    assert "gone, and there is no such folder" in capsys.readouterr().err
    made_by(run, tmp_path, executable="/no/python", argv=["no-such-python", "a.py"])
    assert main(["resume", "--yes", str(run)]) == 10
    assert "the program /no/python is not there" in capsys.readouterr().err
    assert started == []


def test_another_interpreter_of_that_name_is_taken_where_the_path_is_gone(run, tmp_path, started):
    python = tmp_path / "bin" / "snake"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o700)
    made_by(run, tmp_path, executable="/no/python", argv=["bin/snake", "a.py"])
    assert main(["resume", "--yes", str(run)]) == 10
    assert started[0][0] == str(python)


def test_a_strangers_command_can_not_play_with_the_terminal(run, tmp_path, started, capsys):
    made_by(run, tmp_path, argv=["python", "-c", "1\x1b[2K\rprint('harmless')\n"])
    main(["resume", str(run)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert "-c '1\\x1b[2K\\rprint(" in last


def test_what_is_no_run_is_an_error(tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) == 10
    assert "there is no checkpoint in it" in capsys.readouterr().err
