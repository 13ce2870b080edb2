"""Runs in processes of their own, to be killed, or to have system calls go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crash.run import Given
from saving.interrupted_saves import Place, is_traced

CHANGING = frozenset(
    "openat pwrite64 write fallocate ftruncate fsync close mkdir rmdir link linkat "
    "rename renameat renameat2 unlink unlinkat chmod fchmod fchmodat".split()
)
"""The system calls by which a run changes the disk; others are not made to fail."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    refusals: tuple[str, ...] = ()
    """The errors of ours that it met; see `run.train` for what it does then."""
    raised: str = ""
    """Another error, or too many of ours; it ended the run."""
    killed: bool = False


class Victims:
    """A server that makes them; used as a context."""

    def __init__(self) -> None:
        # Without a path no git is found: its system calls are none of ours.
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": ""},
        )

    def start(self, given: Given) -> Victim:
        """Make a run that waits for `go`."""
        self._say(json.dumps(asdict(given)))
        return Victim(self, int(self._hear()))

    def run(self, given: Given, *strace: str) -> Outcome:
        """Run to the end, under strace if there are options for it."""
        victim = self.start(given)
        if not strace:
            victim.go()
            return victim.outcome()
        command = ["strace", "-f", "-q", "-p", str(victim.pid), *strace]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            while not is_traced(str(victim.pid)):
                assert tracer.poll() is None, "strace could not be attached"
                time.sleep(0.001)
            victim.go()
            return victim.outcome()

    def places(self, given: Given) -> list[Place]:
        """Run, and return the system calls by which the run changed the disk."""
        log = Path(f"{given.log}.strace")
        assert self.run(given, "-o", str(log), "-e", "trace=%file,%desc") == Outcome()
        calls = re.findall(r"^(\d+) +(\w+)\(", log.read_text(), flags=re.MULTILINE)
        most: Counter[str] = Counter()
        for (_, name), count in Counter(calls).items():
            most[name] = max(most[name], count)
        return [
            Place(name, when)
            for name, count in most.items()
            if name in CHANGING
            for when in range(1, count + 1)
        ]

    def _say(self, line: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()

    def _hear(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()


@dataclass(frozen=True)
class Victim:
    """A run that is there, and waits or goes."""

    server: Victims
    pid: int

    def go(self) -> None:
        self.server._say("go")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        """Wait for its end, and return what came of it."""
        said = json.loads(self.server._hear())
        return Outcome(tuple(said.pop("refusals")), **said)


def spread(places: list[Place], most: int) -> Iterator[Place]:
    """Yield at most so many of the places, spread evenly over each kind of call."""
    step = max(1, -(-len(places) // most))
    yield from places[::step]
