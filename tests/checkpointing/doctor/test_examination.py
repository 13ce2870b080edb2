"""What stands between a run and an exact resume, seen from outside."""

from __future__ import annotations

import shutil
import subprocess
from collections import namedtuple

import pytest
import torch

from made_runs import change_manifest, cut, flip, make_run
from torchkeep.checkpointing import examine_run
from torchkeep.checkpointing.doctor import examination as doctor
from torchkeep.checkpointing.doctor.environment import environment, versions
from torchkeep.checkpointing.doctor.examination import Start, start_of
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.errors import NoCheckpoint


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", [0.3, 0.1])


def found(run, rule, **options) -> list[tuple[str, str, str]]:
    return [
        (item.severity, item.place, item.text)
        for item in examine_run(run, **options)
        if item.rule == rule
    ]


def changed(run, table, **facts):
    """Let the newest checkpoint say something else about where it was made."""
    now = {"environment": environment(), "versions": versions()}[table]
    change_manifest(run / "step-00000002", **{table: now | facts})


def test_a_run_of_this_machine_has_nothing_but_where_it_goes_on(run):
    (item,) = [item for item in examine_run(run) if item.rule != "git"]
    assert (item.rule, item.severity, item.place) == ("newest", "note", "step-00000002")
    assert item.text == "a resume goes on from here: step 2, epoch 2"


@pytest.mark.parametrize(
    ("fact", "value", "text"),
    [
        ("torch", "1.0", f"PyTorch was 1.0 and is {torch.__version__}"),
        ("machine", "riscv", "the processor was riscv and is "),
        ("cuda_devices", ["A", "B"], "the CUDA devices were A, B and are "),
    ],
)
def test_another_machine_makes_it_inexact(run, fact, value, text):
    changed(run, "environment", **{fact: value})
    rows = [item for item in examine_run(run) if item.severity == "inexact"]
    assert [item.text[: len(text)] for item in rows] == [text]


def test_what_the_program_may_set_itself_is_no_more_than_a_note(run):
    here = torch.get_num_threads()
    changed(run, "environment", num_threads=here + 5, deterministic_algorithms=True)
    assert found(run, "threads") == [
        ("note", "", f"the run used {here + 5} threads, and PyTorch takes {here} here")
    ]
    assert not [item for item in examine_run(run) if item.severity != "note"]


def test_several_processes_are_told_of(run):
    changed(run, "environment", world_size=4)
    assert found(run, "world-size") == [("note", "", "4 processes trained together")]


def test_libraries_of_another_version_or_none_are_told_of(run):
    changed(run, "versions", numpy="1.0", python="2.7", nonesuch="3")
    texts = [text for _, _, text in found(run, "versions")]
    assert [text.partition(" and ")[0] for text in texts] == [
        "nonesuch was 3",
        "numpy was 1.0",
        "python was 2.7",
    ]
    assert texts[0] == "nonesuch was 3 and is not installed"


def test_a_build_of_the_same_version_is_no_other_one(run):
    changed(run, "versions", pytest=f"{pytest.__version__}+cu130")
    assert "pytest" not in " ".join(text for _, _, text in found(run, "versions"))
    changed(run, "versions", pytest="1.0+cu130")
    assert "pytest was 1.0+cu130 and is " in " ".join(x for _, _, x in found(run, "versions"))


def test_what_the_checkpoint_lacks_is_told(run):
    change_manifest(run / "step-00000002", inexact=["the loader has no state"])
    assert found(run, "incomplete") == [("inexact", "step-00000002", "the loader has no state")]


def test_facts_of_another_kind_do_no_harm(run):
    change_manifest(run / "step-00000002", environment=["x"], versions=3, git={}, command="rm -rf")
    assert [item.rule for item in examine_run(run)] == ["newest"]
    changed(run, "environment", torch={"a": ["\x1b[31m"]}, num_threads="many", world_size=None)
    texts = " ".join(item.text for item in examine_run(run))
    assert "\\x1b[31m" in texts
    assert "\x1b" not in texts


def test_damaged_ones_are_named_and_the_newest_is_read(run):
    cut(run / "step-00000001")
    rows = found(run, "damaged")
    assert [(severity, place) for severity, place, _ in rows] == [("damaged", "step-00000001")]
    assert rows[0][2].startswith("model.safetensors has ")
    flip(run / "step-00000002")
    assert [place for _, place, _ in found(run, "damaged")] == ["step-00000002", "step-00000001"]
    assert found(run, "no-checkpoint") == [
        ("blocked", "", "none of its checkpoints is whole: there is nothing to go on with")
    ]


def test_older_ones_are_read_only_if_it_is_asked_for(run):
    flip(run / "step-00000001")
    assert found(run, "damaged") == []
    assert [place for _, place, _ in found(run, "damaged", verify=True)] == ["step-00000001"]


def test_the_worst_comes_first(run):
    cut(run / "step-00000001")
    change_manifest(run / "step-00000002", inexact=["why"])
    severities = [item.severity for item in examine_run(run)]
    assert severities == sorted(severities, key=["damaged", "inexact", "note"].index)
    assert set(severities) == {"damaged", "inexact", "note"}


def test_a_disk_without_room_for_another_blocks(run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(0, 0, 100))
    ((severity, place, text),) = found(run, "disk")
    assert (severity, place) == ("blocked", "")
    assert text.startswith("the disk has 100 B free, and a checkpoint takes ")


def test_who_writes_to_it_is_told_and_then_a_temporary_is_none_of_ours(run):
    shutil.copytree(run / "step-00000001", run / ".step-00000009.torchkeep-tmp-0123456789ab")
    assert found(run, "leftovers") == [("note", "", "an interrupted write left 1 temporary folder")]
    lock = RunLock(run)
    ((_, _, text),) = found(run, "writer")
    assert text.startswith("process ")
    assert text.endswith(" writes to it now")
    assert found(run, "leftovers") == []
    lock.release()


def test_what_is_no_run_is_an_error(tmp_path):
    with pytest.raises(NoCheckpoint):
        examine_run(tmp_path)


# --- The program -------------------------------------------------------------------------------


def git(folder, *words):
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)
    return subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_nothing_that_a_strangers_repository_configures_is_run(tmp_path):
    run = make_run(tmp_path / "run", [0.3])
    git(run, "init")
    (run / "train.py").write_text("")
    git(run, "add", "train.py")
    commit = git(run, "commit", "-m", "first")
    git(run, "config", "core.fsmonitor", f"touch {tmp_path}/was-here; false")
    command = {"argv": ["python", "train.py"], "cwd": str(run)}
    change_manifest(run / "step-00000001", git=commit, command=command)
    subprocess.run(["git", "-C", run, "status"], check=False, capture_output=True)
    assert (tmp_path / "was-here").exists()  # so it would be run if we asked for changes
    (tmp_path / "was-here").unlink()
    examine_run(run)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_another_commit_of_the_program_is_told(run, tmp_path):
    source = tmp_path / "source"
    (source / "code").mkdir(parents=True)
    (source / "code" / "train.py").write_text("print()\n")
    git(source, "init")
    git(source, "add", ".")
    first = git(source, "commit", "-m", "first")
    command = {"argv": ["python", "code/train.py"], "cwd": str(source), "run": str(run)}
    change_manifest(run / "step-00000002", git=first, command=command)
    assert found(run, "git") == []
    (source / "code" / "train.py").write_text("print(1)\n")
    second = git(source, "commit", "-am", "second")
    ((severity, _, text),) = found(run, "git")
    assert severity == "note"
    assert text == f"the program was at commit {first[:12]}, and is at {second[:12]}"
    (source / "code" / "train.py").write_text("print(2)\n")
    change_manifest(run / "step-00000002", git=f"{second}+changes", command=command)
    ((_, _, text),) = found(run, "git")
    assert text == f"the program is commit {second[:12]} with changes; they may be others now"
    shutil.rmtree(source / ".git")
    ((_, _, text),) = found(run, "git")
    assert text.endswith(", and is in no repository now")


@pytest.mark.parametrize(
    "command",
    [
        None,
        "python train.py",
        {},
        {"argv": [], "cwd": "/"},
        {"argv": "python", "cwd": "/"},
        {"argv": ["python", 3], "cwd": "/"},
        {"argv": ["python", "a\0b"], "cwd": "/"},
        {"argv": ["python"], "cwd": None},
        {"argv": ["python"], "cwd": "/a\0b"},
        {"argv": ["python"], "cwd": "src"},
    ],
)
def test_a_command_that_can_not_be_one_is_none(command):
    assert start_of({"command": command}) is None


def test_the_program_is_where_its_script_is(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").touch()
    start = Start(("python", "-O", "code/train.py", "a.py"), "", tmp_path, None)
    assert start.folder == tmp_path / "code"
    assert Start(("python", "code/gone.py"), "", tmp_path, None).folder == tmp_path


def test_a_command_is_taken_as_it_is(tmp_path):
    saved = {"argv": ["python", "-m", "a"], "executable": None, "cwd": str(tmp_path)}
    start = start_of({"command": saved})
    assert start == Start(("python", "-m", "a"), "", tmp_path, None)
    assert start.folder == tmp_path
