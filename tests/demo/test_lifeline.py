"""No child of the demo outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")

CHILD = """
import os, sys, time
pids = [os.getpid()]
for _ in range(2):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
    pids.append(worker)
with open(sys.argv[1], "w") as file:
    file.write(" ".join(map(str, pids)) + "\\n")
time.sleep(60)
"""

STARTER = """
import sys, time
from torchkeep.demo import lifeline
process = lifeline.start("a_child", sys.argv[1:])
if sys.stdin.readline() == "kill\\n":
    lifeline.kill(process)
    print(process.wait(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def modules(tmp_path, monkeypatch) -> Path:
    """Return a folder whose modules child processes can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a_child.py").write_text(CHILD)
    return tmp_path


@pytest.fixture
def starter(modules) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", STARTER, str(modules / "pids")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def pids_in(path: Path) -> list[int]:
    """Wait until the child has told who it and its workers are."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return [int(pid) for pid in text.split()]
        time.sleep(0.01)
    raise AssertionError("the child did not start")


def left_of(pids: list[int]) -> list[int]:
    """Return which processes live on after a second or two."""
    end = time.monotonic() + 5
    while (left := [pid for pid in pids if _is_alive(pid)]) and time.monotonic() < end:
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie that nobody waits for is dead. Where there is no /proc, one of those counts.
        status = Path(f"/proc/{pid}/stat")
        return ") Z " not in status.read_text() if Path("/proc/self").exists() else True
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_and_its_workers_end_with_their_starter(starter, modules, how):
    pids = pids_in(modules / "pids")
    starter.send_signal(how)
    starter.wait()
    assert left_of(pids) == []


def test_the_workers_of_a_child_are_killed_with_it(starter, modules):
    pids = pids_in(modules / "pids")
    starter.stdin.write("kill\n")
    starter.stdin.flush()
    assert int(starter.stdout.readline()) == -signal.SIGKILL
    assert left_of(pids) == []


def test_a_child_gets_its_options_and_is_the_main_program(modules):
    (modules / "a_child.py").write_text(
        "import sys\nprint(__name__, sys.modules['__main__'].__spec__.name, sys.argv[1:])\n"
        "sys.exit('torch' in sys.modules and 'PyTorch was loaded' or 7)\n"
    )
    command = [sys.executable, "-m", "torchkeep.demo.lifeline", "a_child", "--x", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # its input stays open, or it would end
        said, status = process.stdout.read(), process.wait()
    assert (status, said) == (7, "__main__ a_child ['--x', '1']\n")
