"""`torchkeep train --nproc`: several real processes, which are one to whoever looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from torchkeep.cli import main
from torchkeep.cli.processes import _end, _told
from torchkeep.errors import CheckpointProblem

pytestmark = pytest.mark.skipif(
    os.name == "nt" or not torch.distributed.is_available(), reason="there is no torchrun here"
)

NET = "training.samples:Plain"
OPTIONS = ["--arch", NET, "--weights", "none", "--batch-size", "8", "--size", "12"]
TESTS = Path(__file__).parents[1]


SLOW = """
import os, signal, time

def slowly(number, handler, do=signal.signal):
    if number == signal.SIGINT and callable(handler):
        time.sleep(1)
    return do(number, handler)

if os.environ.get("RANK") == "1":
    signal.signal = slowly
"""
"""A `sitecustomize.py` by which the second process is the last one to mind Ctrl-C."""


def start(
    words: list[str], by: Sequence[str] = (), cwd: Path | None = None, **variables: str
) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, *by, "-m", "torchkeep", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables,
    )


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_of_two_processes_is_stopped_and_resumed_like_any_other(
    tmp_path: Path, workers: str
) -> None:
    run = str(tmp_path / "run")
    words = ["train", "training.samples:stripes", *OPTIONS, "--epochs", "300", "--nproc", "2"]
    process = start([*words, "--out", run, "--workers", workers])
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch   3"):
            process.send_signal(signal.SIGTERM)
            break
    rest, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert errors.count("SIGTERM: the run is saved as") == 1
    assert len(errors.splitlines()) == 1, errors
    told = "".join(lines) + rest
    assert "device    cpu, 2 processes: all of the network each, 4 images of a batch\n" in told
    assert told.count("epoch   1 of 300 ") == told.count("epoch   3 of 300 ") == 1

    (tmp_path / "sitecustomize.py").write_text(SLOW)
    again = start(["resume", "--yes", run], PYTHONPATH=f"{tmp_path}{os.pathsep}{TESTS}")
    for line in again.stdout:
        if line.startswith("goes on after"):
            again.send_signal(signal.SIGINT)
            break
    _, errors = again.communicate(timeout=100)
    assert line.startswith("goes on after step ")
    assert again.returncode == 75, errors


def test_what_fails_in_one_process_is_told_once_and_ends_all(tmp_path: Path) -> None:
    words = ["train", "training.samples:broken", *OPTIONS, "--no-check", "--nproc", "2", "--shard"]
    # A name of the user's own, which stands before Python's for `python -m`.
    (tmp_path / "random.py").write_text("raise RuntimeError('who asks for this?')")
    process = start([*words, "--out", str(tmp_path / "run")], by=["-P"], cwd=tmp_path)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (3, "torchkeep: the image has gone.\n")


def test_torchrun_starts_them_again_after_the_last_checkpoint(tmp_path: Path) -> None:
    words = ["train", "training.samples:broken", *OPTIONS, "--no-check", "--epochs", "2"]
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    agent += ["--max-restarts=1"]
    process = start([*words, "--out", str(tmp_path / "run")], by=agent)
    told, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert errors.count("torchkeep: the image has gone.") == 1
    assert "goes on after step 6 of 12\n" in told


def test_processes_with_other_data_each_are_refused(tmp_path: Path) -> None:
    words = ["train", "training.samples:another", *OPTIONS, "--no-check", "--nproc", "2"]
    process = start([*words, "--out", str(tmp_path / "run")])
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 12
    assert errors.startswith("torchkeep: the processes do not have the same data: num_val, ")


def test_a_process_that_waits_for_one_that_has_ended_ends_as_well(tmp_path: Path) -> None:
    words = ["train", "training.samples:never", *OPTIONS, "--nproc", "2"]
    process = start([*words, "--out", str(tmp_path / "run")])
    assert process.stdout.readline() == "asleep\n"
    time.sleep(3)  # the other one waits for this one then, within PyTorch
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "torchkeep: interrupted\n")


@pytest.mark.parametrize(
    ("data", "code", "told"),
    [
        # The other one waits, as within PyTorch, where it hears nothing.
        ("killed", 10, "another process of the training has ended, or does not answer"),
        # Nobody else minds anything yet.
        ("killed_early", 137, "a process of the training was ended by SIGKILL"),
    ],
)
def test_that_a_process_was_killed_is_told_and_ends_all(
    tmp_path: Path, data: str, code: int, told: str
) -> None:
    words = ["train", f"training.samples:{data}", *OPTIONS, "--no-check", "--nproc", "2"]
    process = start([*words, "--out", str(tmp_path / "run")])
    _, errors = process.communicate(timeout=100)
    advice = "Start the command again: it goes on after the last checkpoint."
    assert (process.returncode, errors) == (code, f"torchkeep: {told}. {advice}\n")


def test_an_interrupt_ends_all_also_while_some_have_not_begun(tmp_path: Path) -> None:
    late = "import os, time\nif os.environ.get('RANK') == '0':\n"
    late += "    print('asleep', flush=True)\n    time.sleep(1000)\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    path = os.pathsep.join([str(tmp_path), str(TESTS), os.environ.get("PYTHONPATH", "")])
    words = ["train", "training.samples:stripes", *OPTIONS, "--nproc", "2"]
    process = start([*words, "--out", str(tmp_path / "run")], PYTHONPATH=path)
    assert process.stdout.readline() == "asleep\n"
    time.sleep(10)  # the other one waits for this one then, within PyTorch
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "torchkeep: interrupted"


def test_processes_that_can_not_find_each_other_are_told_so(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert main(["train", "digits"]) == 12
    told = capsys.readouterr().err
    assert "the environment has WORLD_SIZE=2, and no RANK, MASTER_PORT. Start the processes" in told


def test_processes_do_not_outlive_the_one_that_has_started_them(tmp_path: Path) -> None:
    words = ["train", "training.samples:stripes", *OPTIONS, "--epochs", "90000", "--nproc", "2"]
    process = start([*words, "--out", str(tmp_path / "run")])
    for line in process.stdout:
        if line.startswith("epoch   1"):
            process.kill()
            break
    _, errors = process.communicate(timeout=100)  # as long as any of them has stderr
    assert errors.startswith("SIGTERM: the run is saved as")
    assert len(errors.splitlines()) == 1, errors


def test_nothing_is_left_among_temporary_files(tmp_path: Path) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    words = ["train", "training.samples:broken", *OPTIONS, "--no-check", "--nproc", "2"]
    process = start([*words, "--out", str(tmp_path / "run")], TMPDIR=str(place))
    process.communicate(timeout=100)
    assert process.returncode == 3
    assert [item.name for item in place.iterdir() if item.name.startswith("torche")] == []
    assert [item.name for item in place.iterdir() if item.name.startswith("torchk")] == []


def test_a_process_ends_with_its_code_where_there_is_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("TORCHKEEP_TRAIN_OUTCOME", str(tmp_path / "gone" / "outcome"))
    _end(3)
    assert ended == [3]


def test_what_can_not_be_shared_is_refused_before_anything_is_started(
    tmp_path: Path, capsys
) -> None:
    words = ["train", str(tmp_path / "none"), "--batch-size", "9", "--nproc", "2"]
    assert main(words) == 12
    told = capsys.readouterr().err
    assert told.startswith("torchkeep: 2 processes can't have equal shares of batches of 9.")


def test_several_processes_do_not_start_several_each(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end)
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path), *OPTIONS, "--nproc", "2"])
    assert ended == [12]
    assert "--nproc starts processes, and torchrun has started some" in capsys.readouterr().err


def test_that_another_process_has_ended_is_no_bug() -> None:
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error")
    for error in (gloo, torch.distributed.DistNetworkError("the socket has timed out")):
        told = _told(error)
        assert isinstance(told, CheckpointProblem)
        assert "another process of the training has ended, or does not answer" in str(told)
    beside = CheckpointProblem("rank 0: another one has ended", advice="Call all methods alike.")
    beside.__cause__ = gloo
    assert "Start the command again" in str(_told(beside))
    assert _told(bug := RuntimeError("shapes differ")) is bug
    of_first = _told(CheckpointProblem("rank 0: run: process 7 writes to this run"))
    assert str(of_first) == "run: process 7 writes to this run."
