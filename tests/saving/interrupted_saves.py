"""Saves in processes of their own: several at once, or one of which a system call goes wrong.

PyTorch is imported once, by a server that forks a process for each save. For the latter strace is
attached to it before it begins, so that the calls it counts are those of the save alone. It counts
them by thread.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SERVER = """
import os, sys, tempfile, torch
from torchkeep.errors import SaveRefused
from torchkeep.saving import save
torch.set_num_threads(1)

def outcome(path, overwrite, value=2.0):
    try:
        state = {name: torch.full((1 << 10,), value) for name in "xyz"}
        save(state, path, overwrite=overwrite, metadata={"date": "new"})
    except SaveRefused as error:
        return f"refused: {error}"
    except BaseException as error:
        return f"raised: {type(error).__name__}: {error}"
    return "saved"

def run(path, overwrite, value, rounds, wait, answer):
    os.read(wait, 1)
    for _ in range(rounds):
        text = outcome(path, overwrite, value)
    os.write(answer, text.encode())
    os._exit(0)

def serve(path, overwrite, count, rounds):
    wait, go = os.pipe()
    children = []
    for number in range(count):
        result, answer = os.pipe()
        child = os.fork()
        if not child:
            run(path, overwrite, number + 2.0, rounds, wait, answer)
        os.close(answer)
        children.append((child, result))
    print(children[0][0], flush=True)
    sys.stdin.readline()
    os.write(go, b"x" * count)
    for child, result in children:
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else os.read(result, 1 << 16).decode(), flush=True)
        os.close(result)
    os.close(wait)
    os.close(go)

# What is imported or looked up once is no part of a save.
with tempfile.TemporaryDirectory() as folder:
    for suffix in ("safetensors", "pth"):
        outcome(f"{folder}/warm.{suffix}", False)

for line in sys.stdin:
    overwrite, count, rounds, path = line[:-1].split(" ", 3)
    serve(path, overwrite == "1", int(count), int(rounds))
"""

CHANGING = frozenset(
    "openat pwrite64 fallocate fsync link linkat rename renameat "
    "chmod fchmodat unlink unlinkat close".split()
)
"""The system calls by which a save changes the disk; others are not made to fail here."""


@dataclass(frozen=True, slots=True)
class Place:
    """A system call of a save: the `when`-th of its name in one of the threads."""

    name: str
    when: int


class Saves:
    """The server; used as a context."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _say(self, line: str) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return self._server.stdout.readline().rstrip("\n")

    def save(self, path: Path, *strace: str, overwrite: bool = True) -> str:
        """Save under strace with these options; return `saved`, `killed`, or what was raised."""
        pid = self._say(f"{overwrite:d} 1 1 {path}")
        command = ["strace", "-f", "-q", "-p", pid, *strace]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            while not is_traced(pid):
                assert tracer.poll() is None, "strace could not be attached"
                time.sleep(0.001)
            return self._say("go")

    def race(self, path: Path, count: int, *, rounds: int, overwrite: bool) -> list[str]:
        """Save from several processes at once, each `rounds` times; return their last outcomes."""
        self._say(f"{overwrite:d} {count} {rounds} {path}")
        first = self._say("go")
        assert self._server.stdout is not None
        return [first, *(self._server.stdout.readline().rstrip("\n") for _ in range(count - 1))]

    def places(self, path: Path, *, overwrite: bool = True) -> list[Place]:
        """Save, and return the system calls that a save makes with files."""
        log = path.with_name("strace.log")
        options = ("-o", str(log), "-e", "trace=%file,%desc")
        assert self.save(path, *options, overwrite=overwrite) == "saved"
        calls = re.findall(r"^(\d+) +(\w+)\(", log.read_text(), flags=re.MULTILINE)
        log.unlink()
        most: Counter[str] = Counter()
        for (_, name), count in Counter(calls).items():
            most[name] = max(most[name], count)
        return [Place(name, when) for name, count in most.items() for when in range(1, count + 1)]

    def __enter__(self) -> Saves:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        assert self._server.stdout is not None
        self._server.stdout.close()


def is_traced(pid: str) -> bool:
    status = Path("/proc", pid, "status").read_text()
    return "TracerPid:\t0\n" not in status


def can_trace() -> bool:
    """Whether strace is here, and may be attached."""
    if not sys.platform.startswith("linux") or shutil.which("strace") is None:
        return False
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True)
    return done.returncode == 0


def injected(place: Place, what: str) -> Iterator[str]:
    """Yield the options with which strace does something at a place."""
    yield from ("-o", "/dev/null", "-e", f"trace={place.name}")
    yield from ("-e", f"inject={place.name}:{what}:when={place.when}")
