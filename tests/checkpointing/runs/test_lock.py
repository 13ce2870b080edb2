"""A run folder has one owner, however the lock is kept, and none after the owner's death."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torchkeep.checkpointing.runs import lock as run_lock
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.errors import CheckpointProblem

MODULE = """
import importlib.util
import os, sys, time
from pathlib import Path
from torchkeep.errors import CheckpointProblem

# By its file: the package around it imports PyTorch, which takes seconds.
spec = importlib.util.spec_from_file_location("run_lock", sys.argv[3])
run_lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_lock)
run_lock._HAS_FILE_LOCKS = sys.argv[2] == "True"
"""

OTHER = """
try:
    run_lock.RunLock(Path(sys.argv[1]))
except CheckpointProblem as problem:
    print(problem)
else:
    print("it is ours")
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="nobody is kept out on Windows")
needs_file_locks = pytest.mark.skipif(
    not run_lock._HAS_FILE_LOCKS, reason="this system has no locks that belong to an opened file"
)


@pytest.fixture(params=[pytest.param(True, marks=needs_file_locks), False], ids=["file", "process"])
def has_file_locks(request, monkeypatch):
    monkeypatch.setattr(run_lock, "_HAS_FILE_LOCKS", request.param)
    return request.param


def command(program: str, folder: Path, has_file_locks: bool) -> list[str]:
    options = [str(folder), str(has_file_locks), str(run_lock.__file__)]
    return [sys.executable, "-c", MODULE + program, *options]


def another_process(folder, *, has_file_locks: bool) -> str:
    """Let another process try to lock the folder, and return what it says."""
    done = subprocess.run(
        command(OTHER, folder, has_file_locks), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_another_process_is_kept_out_until_the_release(tmp_path, has_file_locks):
    lock = RunLock(tmp_path)
    said = another_process(tmp_path, has_file_locks=has_file_locks)
    assert f"process {os.getpid()} on " in said
    assert "writes to this run. Stop it first" in said
    lock.release()
    assert another_process(tmp_path, has_file_locks=has_file_locks) == "it is ours"


@pytest.mark.parametrize("number", ["1", "2", "all"])
def test_processes_without_a_group_are_told_of_it(tmp_path, has_file_locks, number, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", number)
    lock = RunLock(tmp_path)
    said = another_process(tmp_path, has_file_locks=has_file_locks)
    assert ("2 processes that were started together (WORLD_SIZE)" in said) is (number == "2")
    assert ("call torch.distributed.init_process_group()" in said) is (number == "2")
    assert "top it first, or choose another folder." in said
    lock.release()


def test_a_second_owner_in_this_process_is_refused(tmp_path, has_file_locks):
    lock = RunLock(tmp_path)
    with pytest.raises(CheckpointProblem, match="this process already writes to this run"):
        RunLock(tmp_path)
    lock.release()
    lock.release()  # does nothing
    RunLock(tmp_path).release()


@needs_file_locks
def test_a_process_that_locks_the_other_way_is_kept_out_too(tmp_path):
    lock = RunLock(tmp_path)
    assert "writes to this run" in another_process(tmp_path, has_file_locks=False)
    lock.release()


@needs_file_locks
def test_a_copy_of_the_folder_does_not_let_others_in(tmp_path):
    lock = RunLock(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run" / ".lock").read_bytes()
    assert "writes to this run" in another_process(tmp_path / "run", has_file_locks=True)
    lock.release()


def test_a_refused_owner_leaves_nothing_open(tmp_path, monkeypatch):
    def refuse(_fd):
        raise BlockingIOError(errno.EAGAIN, "taken")

    (tmp_path / ".lock").write_text("process 7 on moon\n")
    monkeypatch.setattr(run_lock, "_lock", refuse)
    with pytest.raises(CheckpointProblem, match="process 7 on moon writes to this run"):
        RunLock(tmp_path)
    monkeypatch.undo()
    RunLock(tmp_path).release()
    open_files = {os.path.realpath(item) for item in Path("/proc/self/fd").iterdir()}
    assert str(tmp_path / ".lock") not in open_files


def test_a_file_system_without_locks_is_named_as_what_it_is(tmp_path, monkeypatch):
    def refuse(_fd):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock, "_lock", refuse)
    with pytest.raises(CheckpointProblem, match=r"can't be locked \(No locks available\)"):
        RunLock(tmp_path)


def test_a_full_disk_keeps_nobody_from_going_on(tmp_path, monkeypatch):
    def refuse(_fd, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(os, "write", refuse)
        lock = RunLock(tmp_path)
    assert "another process writes to this run" in another_process(tmp_path, has_file_locks=True)
    lock.release()


def test_new_folders_are_synced_into_those_above_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(run_lock, "sync_folder", synced.append)
    RunLock(tmp_path / "a" / "b").release()
    assert synced == [tmp_path, tmp_path / "a"]
    RunLock(tmp_path / "a" / "b").release()
    assert synced == [tmp_path, tmp_path / "a"]


HOLD_AND_FORK = """
lock = run_lock.RunLock(Path(sys.argv[1]))
worker = os.fork()
if worker == 0:
    time.sleep(60)
tidy = os.fork()
if tidy == 0:
    reused = os.open(os.devnull, os.O_RDONLY)  # has the number that the lock had
    lock.release()
    os._exit(0 if os.fstat(reused) else 1)
assert os.waitpid(tidy, 0)[1] == 0
print(worker, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_worker_neither_keeps_the_lock_nor_frees_it(tmp_path, has_file_locks):
    holder = command(HOLD_AND_FORK, tmp_path, has_file_locks)
    with subprocess.Popen(holder, stdout=subprocess.PIPE, text=True) as owner:
        worker = int(owner.stdout.readline())
        try:
            assert f"process {owner.pid} on" in another_process(
                tmp_path, has_file_locks=has_file_locks
            )
            owner.kill()
            owner.wait()
            os.kill(worker, 0)  # it is alive
            assert another_process(tmp_path, has_file_locks=has_file_locks) == "it is ours"
        finally:
            owner.kill()
            os.kill(worker, signal.SIGKILL)


@needs_file_locks
def test_a_copy_of_the_opened_file_in_a_young_child_does_not_keep_the_lock(tmp_path):
    lock = RunLock(tmp_path)
    copy = os.dup(lock._fd)  # what a forked child has until Python's hook closes it there
    lock.release()
    assert another_process(tmp_path, has_file_locks=True) == "it is ours"
    os.close(copy)


def test_a_program_that_is_started_meanwhile_does_not_keep_the_lock(tmp_path, has_file_locks):
    lock = RunLock(tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep, close_fds=False) as program:
        lock.release()
        assert another_process(tmp_path, has_file_locks=has_file_locks) == "it is ours"
        program.kill()


ASKS = "print(run_lock.writer_of(Path(sys.argv[1])))"


def asked(folder, *, has_file_locks: bool) -> str:
    """Let another process ask who writes to the folder."""
    done = subprocess.run(
        command(ASKS, folder, has_file_locks), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_who_writes_is_told_and_asking_changes_nothing(tmp_path, has_file_locks):
    assert asked(tmp_path, has_file_locks=has_file_locks) == ""
    assert list(tmp_path.iterdir()) == []
    lock = RunLock(tmp_path)
    # Not read by its name: to close that would give up a lock that belongs to the process.
    expected = os.pread(lock._fd, 100, 0).decode().strip()
    assert asked(tmp_path, has_file_locks=has_file_locks) == expected
    assert run_lock.writer_of(tmp_path) == expected
    assert "writes to this run" in another_process(tmp_path, has_file_locks=has_file_locks)
    lock.release()
    assert asked(tmp_path, has_file_locks=has_file_locks) == ""
    assert run_lock.writer_of(tmp_path) == ""


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system has no such flag")
def test_what_a_stranger_put_in_the_place_of_the_lock_is_not_touched(tmp_path):
    precious = tmp_path / "thesis.tex"
    precious.write_text("years of work")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(precious)
    with pytest.raises(CheckpointProblem, match="can't be written to"):
        RunLock(run)
    assert precious.read_text() == "years of work"
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    assert run_lock.writer_of(run) == ""  # and nobody waits for somebody to write to it
    with pytest.raises(CheckpointProblem, match="can't be written to"):
        RunLock(run)
