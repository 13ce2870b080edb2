"""A disk that is full, at each degree of fullness: the older checkpoint stays, the run goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crash.judge import judge, read_log
from crash.run import Given
from crash.scale import IS_ALL, is_root
from crash.victims import Outcome, Victims

PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system in memory with these options, in place of the one before."""
    folder = tmp_path / "disk"
    folder.mkdir()
    is_mounted = False

    def unmount() -> None:
        nonlocal is_mounted
        if is_mounted:
            subprocess.run(["umount", str(folder)], check=True)
            is_mounted = False

    def mount(options: str) -> Path:
        nonlocal is_mounted
        unmount()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not is_root() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("nothing may be mounted here: it takes root's rights")
        is_mounted = True
        return folder

    yield mount
    unmount()


def second_run(victims: Victims, given: Given, limit: Callable[[], Given], words: str) -> str:
    """Save once, and again with a limit in force; return what came of the second save."""
    assert victims.run(replace(given, num_steps=1)) == Outcome()
    outcome = victims.run(limit())
    last_done = read_log(given.log).last_done
    if outcome == Outcome():
        assert last_done == given.num_steps
        return "saved"
    # In the foreground it tried again and again, and gave up.
    for refusal in outcome.refusals or (outcome.raised.removeprefix("RuntimeError: "),):
        assert refusal.startswith("SaveRefused"), outcome
        assert words in refusal, outcome
    assert last_done == 1, outcome
    return "refused"


DEGREES = range(80) if IS_ALL else range(0, 80, 9)
"""How many pages, or names, are free."""


@pytest.mark.parametrize("what", ["bytes", "names"])
def test_a_full_disk_costs_nothing_but_the_new_checkpoint(
    victims: Victims,
    small_disk: Callable[[str], Path],
    tmp_path: Path,
    tally: Callable[[str], None],
    what: str,
) -> None:
    outcomes = set()
    for free in DEGREES if what == "bytes" else range(0, 20, 1 if IS_ALL else 4):
        disk = small_disk("size=2m,nr_inodes=200")
        given = Given(f"{disk}/run", f"{tmp_path}/log{what}{free}", num_steps=2, background=False)

        def fill(given: Given = given, disk: Path = disk, free: int = free) -> Given:
            (disk / "filler").mkdir()
            if what == "bytes":
                fill_bytes(disk, free)
            else:
                fill_names(disk, free)
            return given

        outcome = second_run(victims, given, fill, "the disk is full; nothing was changed")
        outcomes.add(outcome)
        subprocess.run(["rm", "-r", f"{disk}/filler"], check=True)
        verdict = judge(given.folder, given.log)
        assert verdict.num_temporaries == 0
        tally(f"{outcome}; found: {verdict.outcome}")
    assert outcomes == {"refused", "saved"}


def fill_bytes(disk: Path, num_free_pages: int) -> None:
    fd = os.open(disk / "filler" / "file", os.O_WRONLY | os.O_CREAT)
    left = os.statvfs(disk)
    nbytes = left.f_bavail * left.f_bsize - num_free_pages * PAGE
    if nbytes > 0:
        os.posix_fallocate(fd, 0, nbytes)
    os.close(fd)


def fill_names(disk: Path, num_free: int) -> None:
    for number in range(os.statvfs(disk).f_favail - num_free):
        (disk / "filler" / f"{number}").touch()


def test_a_limit_of_file_sizes_costs_nothing_but_the_new_checkpoint(
    victims: Victims, fresh: Callable[[], Path], tally: Callable[[str], None]
) -> None:
    outcomes = set()
    for nbytes in range(1_000, 120_000, 1_500 if IS_ALL else 17_000):
        folder = fresh()
        given = Given(f"{folder}/run", f"{folder}/log", num_steps=2)

        def limit(given: Given = given, nbytes: int = nbytes) -> Given:
            return replace(given, most_file_nbytes=nbytes)

        outcome = second_run(victims, given, limit, "larger than a file may be here")
        outcomes.add(outcome)
        verdict = judge(given.folder, given.log)
        assert verdict.num_temporaries == 0
        tally(f"{outcome}; found: {verdict.outcome}")
    assert outcomes == {"refused", "saved"}
