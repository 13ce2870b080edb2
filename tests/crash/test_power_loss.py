"""The power is cut while a run saves on ext4: a file system in a file, stopped in the middle.

`FS_IOC_SHUTDOWN` stops a mounted file system as a power loss does. What its journal has not on the
disk by then is lost, and what was not synced with it. It takes root's rights and a loop device.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.judge import judge
from crash.run import Given
from crash.scale import IS_ALL, is_root
from crash.victims import Victims
from torchkeep.errors import NoCheckpoint

fcntl = pytest.importorskip("fcntl", reason="this system has no ext4")

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32), include/uapi/linux/fs.h
_WITH_LOG, _WITHOUT_LOG = 1, 2
"""Whether the journal's last part is still written: EXT4_GOING_FLAGS_LOGFLUSH, _NOLOGFLUSH."""

OPTIONS = ("data=ordered", "data=writeback", "data=ordered,nodelalloc")
"""How ext4 is mounted: its default, a weaker one, and one that allocates at once."""


class Ext4:
    """A small ext4 whose power can be cut.

    Attributes:
        folder: where it is mounted, if it is.
    """

    def __init__(self, place: Path) -> None:
        self.folder = place / "mounted"
        self.folder.mkdir()
        self._image = place / "image"
        with self._image.open("wb") as image:
            image.truncate(32 << 20)
        if not is_root() or shutil.which("mkfs.ext4") is None:
            pytest.skip("an ext4 of our own takes root's rights and mkfs.ext4")
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)
        self._is_mounted = False

    def mount(self, options: str = OPTIONS[0]) -> None:
        command = ["mount", "-t", "ext4", "-o", f"loop,{options}", self._image, self.folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"an ext4 in a file can't be mounted here: {done.stderr.strip()}")
        self._is_mounted = True

    def cut_power(self, *, with_log: bool) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(
                fd, _SHUTDOWN, (_WITH_LOG if with_log else _WITHOUT_LOG).to_bytes(4, "little")
            )
        except OSError as error:
            pytest.skip(f"this ext4 can't be stopped: {error.strerror}")
        finally:
            os.close(fd)

    def unmount(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", self.folder], check=True)
            self._is_mounted = False

    def check(self) -> None:
        """Check that the file system itself is whole, once its journal was replayed."""
        done = subprocess.run(
            ["fsck.ext4", "-f", "-n", self._image], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ext4]:
    disk = Ext4(tmp_path)
    yield disk
    disk.unmount()


def cut(disk: Ext4, victims: Victims, given: Given, options: str, chance: random.Random) -> None:
    """Train, and cut the power at a random moment."""
    disk.mount(options)
    victim = victims.start(given)
    victim.go()
    time.sleep(chance.uniform(0.0, 0.25))
    disk.cut_power(with_log=chance.random() < 0.25)
    victim.kill()
    victim.outcome()
    disk.unmount()


NUM_TRIALS = 210 if IS_ALL else 5
TRIALS_PER_RUN = 10


def test_a_power_loss_costs_no_written_checkpoint(
    ext4: Ext4, victims: Victims, tmp_path: Path, tally: Callable[[str], None]
) -> None:
    chance = random.Random(1)
    for trial in range(NUM_TRIALS):
        number, part = divmod(trial, TRIALS_PER_RUN)
        options = OPTIONS[trial % len(OPTIONS)]
        given = Given(
            f"{ext4.folder}/run{number}",
            f"{tmp_path}/log{number}",
            num_steps=1_000_000,
            background=trial % 2 == 0,
        )
        cut(ext4, victims, given, options, chance)
        ext4.mount(options)
        verdict = judge(given.folder, given.log)
        left = "with temporaries" if verdict.num_temporaries else "without temporaries"
        tally(f"{verdict.outcome}, {left}")
        if part == TRIALS_PER_RUN - 1:
            shutil.rmtree(given.folder)
        ext4.unmount()
    ext4.check()


def test_this_finds_out_who_does_not_sync(ext4: Ext4, victims: Victims, tmp_path: Path) -> None:
    log = tmp_path / "log"
    given = Given(f"{ext4.folder}/run", f"{log}", num_steps=1_000_000, durable=False)
    ext4.mount("commit=300")  # seconds; by default the system itself syncs every five
    victim = victims.start(given)
    victim.go()
    while not log.exists() or "done" not in log.read_text():
        time.sleep(0.01)
    ext4.cut_power(with_log=False)
    victim.kill()
    victim.outcome()
    ext4.unmount()
    ext4.mount()
    seen = "a written checkpoint is gone|every checkpoint is damaged"
    with pytest.raises((AssertionError, NoCheckpoint), match=seen):
        judge(given.folder, given.log)
