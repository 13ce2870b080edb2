"""How the program was started, as a checkpoint tells it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from torchkeep.checkpointing.doctor.environment import command

PROGRAM = """\
import json, os
from pathlib import Path
from torchkeep.checkpointing.doctor.environment import command
os.chdir("/")
print(json.dumps(command(Path("run"))))
"""


def started(tmp_path, *words: str, **environment: str):
    """Start Python with words, and return what the program says about its start."""

    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, **environment},
        input=PROGRAM,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_script_is_told_with_its_arguments_and_where_it_was_started(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    assert started(tmp_path, "-O", "train.py", "--lr", "0.1 ") == {
        "argv": [sys.executable, "-O", "train.py", "--lr", "0.1 "],
        "executable": sys.executable,
        "cwd": str(tmp_path),
        "run": "/run",
    }


def test_modules_and_programs_in_the_command_line_are_told(tmp_path):
    (tmp_path / "train.py").write_text(PROGRAM)
    assert started(tmp_path, "-m", "train")["argv"][1:] == ["-m", "train"]
    assert started(tmp_path, "-c", PROGRAM)["argv"][1:] == ["-c", PROGRAM]


def test_what_was_typed_in_can_not_be_started_again(tmp_path):
    assert started(tmp_path, "-") is None


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "LOCAL_RANK", "WORLD_SIZE"])
def test_one_of_the_processes_of_a_launcher_can_not_be_started_alone(tmp_path, name):
    (tmp_path / "train.py").write_text(PROGRAM)
    assert started(tmp_path, "train.py", **{name: "1"}) is None


def test_a_child_of_multiprocessing_can_not_be_started_alone(monkeypatch, tmp_path):

    assert command(tmp_path) is not None
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert command(tmp_path) is None
