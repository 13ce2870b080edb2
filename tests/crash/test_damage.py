"""A written checkpoint that is cut off or altered afterwards: found, named, and passed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crash.judge import read_log
from crash.run import Given, Trainee, train
from crash.scale import IS_ALL
from torchkeep.checkpointing import newest_whole
from torchkeep.checkpointing.layout import MANIFEST, MODEL_FILE, damage, read_manifest
from torchkeep.checkpointing.runs.checkpoints import look_at
from torchkeep.errors import CheckpointProblem, FileProblem
from torchkeep.formats.own.manifest import STATE_FILE

WIDTH = 8
NAMES = (MODEL_FILE, STATE_FILE, MANIFEST)

each_file = pytest.mark.parametrize("name", NAMES)


class Run:
    """A run with two checkpoints, of which the newer one is damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "run", folder / "log"
        train(Given(str(self.folder), str(self.log), num_steps=1, width=WIDTH))
        shutil.copytree(self.folder / "step-00000001", folder / "kept")
        train(Given(str(self.folder), str(self.log), num_steps=2, width=WIDTH))
        shutil.copytree(folder / "kept", self.folder / "step-00000001")
        self.newer = self.folder / "step-00000002"
        self.contents = read_log(self.log).contents

    def restored(self, checkpoint: Path | None = None) -> tuple[int, str]:
        """Restore the newest whole one, or a given one; return its step and its content."""
        return restored(self.folder, checkpoint)

    def holds(self, step: int, content: str) -> bool:
        return self.contents[step] == {content}


def restored(folder: Path | str, checkpoint: Path | None = None) -> tuple[int, str]:
    trainee = Trainee(WIDTH)
    ckpt = trainee.checkpointer(folder)
    try:
        return ckpt.restore(checkpoint).step, trainee.content()
    finally:
        ckpt.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    assert run.holds(*run.restored())
    return run


def check_found(run: Run, where: object) -> None:
    """Check that the newer checkpoint is found damaged, by what `newest_whole` asks."""
    assert look_at(run.newer).problem or damage(run.newer), where


def check_damaged(run: Run, where: object) -> None:
    """Check that the newer checkpoint is found damaged, named, and passed over."""
    newest = newest_whole(run.folder)
    assert newest.checkpoint.step == 1, where
    (skipped,) = newest.skipped
    assert skipped.path == run.newer, where
    assert skipped.problem, where


def check_refused(run: Run, where: object) -> None:
    """Check that it is refused also when it is asked for, and the older one is restored."""
    with pytest.raises((FileProblem, CheckpointProblem)):
        run.restored(run.newer)
    step, content = run.restored()
    assert step == 1, where
    assert run.holds(step, content), where


def some(places: Iterable[int], count: int) -> list[int]:
    """Return the places, or a few of them that are spread evenly."""
    places = sorted(set(places))
    return places if IS_ALL else places[:: max(1, len(places) // count)]


@each_file
def test_a_checkpoint_that_is_cut_off_is_named_and_passed_over(
    run: Run, tally: Callable[[str], None], name: str
) -> None:
    path = run.newer / name
    whole = path.read_bytes()
    near_pages = {page + by for page in range(0, len(whole), 4096) for by in (-1, 0, 1)}
    near_header = {*range(12), len(whole) - 1}
    lengths = near_pages | near_header if not IS_ALL else set(range(len(whole)))
    for number, length in enumerate(sorted(lengths & set(range(len(whole))))):
        path.write_bytes(whole[:length])
        check_found(run, length)
        if number % 50 == 0:
            check_damaged(run, length)
            check_refused(run, length)
        tally("named, and the older one found")


@each_file
def test_a_missing_or_longer_file_is_named_and_passed_over(
    run: Run, tally: Callable[[str], None], name: str
) -> None:
    path = run.newer / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    if name != MANIFEST:  # one more line break changes nothing of what a manifest says
        check_damaged(run, "longer")
        check_refused(run, "longer")
        tally("named, and the older one found")
    path.unlink()
    check_damaged(run, "missing")
    check_refused(run, "missing")
    tally("named, and the older one found")


def flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """Return where the tensors of a safetensors file begin and end."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__")
    return {
        key: (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for key, entry in header.items()
    }


@pytest.mark.parametrize("name", [MODEL_FILE, STATE_FILE])
def test_one_flipped_bit_of_any_tensor_is_named_and_passed_over(
    run: Run, tally: Callable[[str], None], name: str
) -> None:
    path = run.newer / name
    places = tensor_places(path)
    assert len(places) == len(read_manifest(run.newer)["tensors"][name])
    for key, (begin, end) in places.items():
        offset, bit = begin + hash_of(key) % (end - begin), hash_of(key) % 8
        flip(path, offset, bit)
        check_damaged(run, key)
        check_refused(run, key)
        flip(path, offset, bit)
        tally("named, and the older one found")
    assert run.restored()[0] == 2


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little") % 1_000_003


@pytest.mark.parametrize("name", [MODEL_FILE, STATE_FILE])
def test_one_flipped_bit_of_a_header_is_named_and_passed_over(
    run: Run, tally: Callable[[str], None], name: str
) -> None:
    path = run.newer / name
    begin = min(begin for begin, _ in tensor_places(path).values())
    for offset in some(range(begin), 60):
        flip(path, offset, offset % 8)
        check_found(run, offset)
        flip(path, offset, offset % 8)
        tally("named, and the older one found")


def test_one_flipped_bit_of_a_manifest_is_named_or_says_the_same(
    run: Run, tally: Callable[[str], None]
) -> None:
    path = run.newer / MANIFEST
    for offset in some(range(path.stat().st_size), 150):
        bit = offset * 5 % 8
        flip(path, offset, bit)
        if look_at(run.newer).problem:
            tally("named, and the older one found")
        else:
            # An "e" became an "E" in a number or in an escape: it says the same.
            assert run.restored() == (2, *run.contents[2]), (offset, bit)
            tally("says the same")
        flip(path, offset, bit)


def test_a_block_of_zeros_or_of_another_file_is_named_and_passed_over(
    run: Run, tally: Callable[[str], None]
) -> None:
    for name in NAMES:
        path = run.newer / name
        whole = path.read_bytes()
        for start in range(0, len(whole), 512):
            for block in (bytes(512), whole[:512]):
                data = (whole[:start] + block + whole[start + 512 :])[: len(whole)]
                if data == whole:
                    continue
                path.write_bytes(data)
                check_damaged(run, (name, start))
                tally("named, and the older one found")
        path.write_bytes(whole)


class BadDisk:
    """Flips a bit of what one call writes, on its way to the disk.

    Attributes:
        num_writes: calls so far.
    """

    def __init__(self, number: int, patches: pytest.MonkeyPatch) -> None:
        self.num_writes = 0
        self._number = number
        self._write = os.pwrite
        patches.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        if self.num_writes == self._number:
            data = bytearray(data)
            data[len(data) // 2] ^= 1
        self.num_writes += 1
        return self._write(fd, data, offset)


def test_a_bit_that_flips_on_its_way_to_the_disk_costs_no_older_checkpoint(
    fresh: Callable[[], Path], tally: Callable[[str], None]
) -> None:
    number, num_writes, num_named = 0, 1, 0
    while number < num_writes:
        folder = fresh()
        given = Given(f"{folder}/run", f"{folder}/log", num_steps=1, width=WIDTH)
        assert train(given) == []
        with pytest.MonkeyPatch.context() as patches:
            disk = BadDisk(number, patches)
            refusals = train(replace(given, num_steps=2))
            num_writes = disk.num_writes
        step, content = restored(given.folder)
        assert read_log(given.log).contents[step] == {content}
        for refusal in refusals:
            assert "step-00000002: the new checkpoint reads back wrong: " in refusal
            assert refusal.endswith("Look after the disk. No older checkpoint was deleted.")
        assert step == 1 or not refusals
        tally("the older one found" if step == 1 else "says the same")
        num_named += len(refusals)
        number += 1
    assert num_named >= 2, "one for each file of tensors"


_DIFFERS = r"state\.safetensors: tensor \S+ differs from what was written"
EACH_IS_DAMAGED = (
    rf"every checkpoint is damaged \(step-00000002: {_DIFFERS}; step-00000001: {_DIFFERS}\)"
)


@pytest.mark.parametrize("resume", ["auto", True])
def test_a_run_of_damaged_checkpoints_is_not_begun_anew(run: Run, resume: Any) -> None:
    for folder in run.folder.glob("step-*"):
        flip(folder / STATE_FILE, -1, 0)
    ckpt = Trainee(WIDTH).checkpointer(run.folder, resume=resume)
    with pytest.raises(CheckpointProblem, match=EACH_IS_DAMAGED), ckpt:
        pass


def test_a_damaged_checkpoint_counts_for_nothing_when_old_ones_are_deleted(run: Run) -> None:
    flip(run.newer / STATE_FILE, -1, 0)
    train(Given(str(run.folder), str(run.log), num_steps=3, width=WIDTH))
    names = sorted(item.name for item in run.folder.glob("step-*"))
    assert "step-00000002" in names, "somebody may want to rescue a part of it"
    assert newest_whole(run.folder).checkpoint.step == 3
