"""What the tests of crashes share, and the table of what came of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.scale import IS_ALL
from crash.victims import Victims
from saving.interrupted_saves import can_trace

_tally: dict[str, Counter[str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.crash)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Counts what came of a trial, under the test's name."""
    name = request.node.name.removeprefix("test_").replace("_", " ")
    counts = _tally.setdefault(name, Counter())

    def count(outcome: str) -> None:
        counts[outcome] += 1

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not IS_ALL or not _tally:
        return
    terminalreporter.section("what was tried, and what came of it")
    for name, counts in _tally.items():
        terminalreporter.line(f"{counts.total():6} {name}")
        for outcome, count in sorted(counts.items()):
            terminalreporter.line(f"{count:15} {outcome}")


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each opening of a run two processes."""
    monkeypatch.setattr("torchkeep.checkpointing.checkpointer.git_revision", lambda: None)


@pytest.fixture(scope="module")  # what later tests fork, such as workers, would hold its pipe
def _server() -> Iterator[Victims]:
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork")
    with Victims() as server:
        yield server


@pytest.fixture
def victims(_server: Victims) -> Victims:
    return _server


@pytest.fixture
def traced(_server: Victims) -> Victims:
    """The same, where strace may be used."""
    if not can_trace():
        pytest.skip("there is no strace, or it may not be used")
    return _server


@pytest.fixture
def fresh() -> Iterator[Callable[[], Path]]:
    """Makes an empty folder, and removes the one before: thousands would fill the disk.

    It is in memory where that can be: syncing takes most of the time, and is not what is tried.
    """
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as root:
        number = 0

        def make() -> Path:
            nonlocal number
            shutil.rmtree(f"{root}/{number}", ignore_errors=True)
            number += 1
            folder = Path(f"{root}/{number}")
            folder.mkdir()
            return folder

        yield make
