"""Saving where it can't work, or is made to fail: one clear error, the old file, nothing else."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as reference
import torch

import torchkeep
from saving.interrupted_saves import CHANGING, Place, Saves, can_trace, injected
from torchkeep.errors import SaveRefused
from torchkeep.files import TEMPORARY_MARK, remove_temporaries
from torchkeep.saving import save

STATE = {"x": torch.full((1 << 10,), 2.0)}

suffixes = pytest.mark.parametrize("suffix", [".safetensors", ".pth"])


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        # `load_file` opens the file twice, and somebody may replace it in between.
        return reference.load(path.read_bytes())
    return torch.load(path, weights_only=True)


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(SaveRefused) as caught:
        save(STATE, path, **options)
    return str(caught.value)


# --- What stands there -------------------------------------------------------------------------

folder_or_file = pytest.mark.parametrize("overwrite", [False, True])


@suffixes
@folder_or_file
def test_a_folder_of_that_name_is_refused(tmp_path: Path, suffix: str, overwrite: bool) -> None:
    path = tmp_path / f"model{suffix}"
    path.mkdir()
    (path / "precious").touch()
    assert refusal(path, overwrite=overwrite) == (
        f"{path}: this is a folder, not a file. Choose another name."
    )
    assert names(tmp_path) == [path.name]
    assert names(path) == ["precious"]


@suffixes
@folder_or_file
def test_a_pipe_of_that_name_is_refused(tmp_path: Path, suffix: str, overwrite: bool) -> None:
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    assert refusal(path, overwrite=overwrite) == (
        f"{path}: this is a device or a pipe, not a file. Choose another name."
    )
    assert names(tmp_path) == [path.name]
    assert stat.S_ISFIFO(path.stat().st_mode)


@suffixes
def test_a_read_only_file_is_not_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"old")
    path.chmod(0o444)
    assert refusal(path, overwrite=True) == (
        f"{path}: the file there is read-only. Choose another name, or make it writable "
        "(`chmod u+w`)."
    )
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == [path.name]


def test_a_file_for_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "model.pth"
    assert refusal(path) == f"{path}: its folder does not exist. Create the folder first."


# --- Symbolic links ----------------------------------------------------------------------------


@suffixes
def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path, suffix: str) -> None:
    target, link = tmp_path / f"real{suffix}", tmp_path / f"link{suffix}"
    link.symlink_to(target.name)
    save(STATE, link)  # a link to nowhere
    assert read(target)["x"].eq(2.0).all()
    assert "there is something already" in refusal(link)
    save({"x": torch.ones(1)}, link, overwrite=True)
    assert link.is_symlink()
    assert read(target)["x"].tolist() == [1.0]
    assert names(tmp_path) == sorted([link.name, target.name])


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop.pth"
    path.symlink_to(path)
    for overwrite in (False, True):
        assert refusal(path, overwrite=overwrite) == (
            f"{path}: could not be written (Too many levels of symbolic links)."
        )
    assert path.is_symlink()


# --- Names -------------------------------------------------------------------------------------

ODD = ["a\nb", "\x1b[31m", " ", "größe", "犬", os.fsdecode(b"\xff\xfe"), "x" * 240, "ö" * 120]


@suffixes
@pytest.mark.parametrize("name", ODD)
def test_whatever_the_file_system_allows_is_a_name(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}{suffix}"
    try:
        path.touch()
        path.unlink()
    except OSError:
        pytest.skip("the file system has no such names")
    assert save(STATE, path).path == path
    assert read(path)["x"].eq(2.0).all() if name.isascii() else path.stat().st_size
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, "the name is too long. Choose a shorter one."),
        ("a\0b", "no file can be called so (with a null byte)."),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str, message: str) -> None:
    assert refusal(f"{tmp_path}/{name}.pth").endswith(f".pth: {message}")
    assert names(tmp_path) == []


def test_a_name_can_not_break_the_message(tmp_path: Path) -> None:
    path = tmp_path / "a\nmodel.pth: saved\x1b[2K.pth"
    path.touch()
    assert refusal(path) == (
        rf"{tmp_path}/a\nmodel.pth: saved\x1b[2K.pth: there is something already. Choose another "
        "name, or pass overwrite=True to replace it."
    )


# --- Folders and disks -------------------------------------------------------------------------

READ_ONLY = "its folder may not be written to. Check its mode."


@suffixes
def test_a_folder_that_takes_no_files_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    tmp_path.chmod(0o555)
    if os.geteuid() == 0:  # whom no mode stops
        monkeypatch.setattr(os, "open", refuse)
    path = tmp_path / f"model{suffix}"
    assert refusal(path) == f"{path}: {READ_ONLY}"
    assert names(tmp_path) == []


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes files and folders immutable, which stops root, too."""
    made: list[Path] = []

    def make(path: Path) -> None:
        done = subprocess.run(["chattr", "+i", str(path)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("nothing can be made immutable here")
        made.append(path)

    try:
        yield make
    except FileNotFoundError:
        pytest.skip("there is no chattr")
    finally:
        for path in made:
            subprocess.run(["chattr", "-i", str(path)], check=True)


@suffixes
def test_an_immutable_folder_or_file_is_refused(
    tmp_path: Path, suffix: str, immutable: Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / f"model{suffix}"
    save({"x": torch.ones(1)}, path)
    old = path.read_bytes()
    for place in (path, folder):
        immutable(place)
        assert refusal(path, overwrite=True) == f"{path}: {READ_ONLY}"
        assert path.read_bytes() == old
        assert names(folder) == [path.name]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts an empty file system with these options, and again with others."""
    folder = tmp_path / "disk"
    folder.mkdir()
    is_mounted = False

    def mount(options: str) -> Path:
        nonlocal is_mounted
        again = ["-o", f"remount,{options}"] if is_mounted else ["-o", options]
        command = ["mount", "-t", "tmpfs", *again, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("nothing may be mounted here")
        is_mounted = True
        return folder

    yield mount
    if is_mounted:
        subprocess.run(["umount", str(folder)], check=True)


@suffixes
def test_a_read_only_disk_is_refused(disk: Callable[[str], Path], suffix: str) -> None:
    path = disk("size=1m") / f"model{suffix}"
    save({"x": torch.ones(1)}, path)
    old = path.read_bytes()
    disk("ro")
    assert refusal(path, overwrite=True) == f"{path}: {READ_ONLY}"
    assert refusal(path.with_name(f"other{suffix}")).endswith(READ_ONLY)
    assert path.read_bytes() == old
    assert names(path.parent) == [path.name]


@suffixes
@pytest.mark.parametrize("durable", [False, True])
def test_a_full_disk_leaves_the_old_file_alone(
    disk: Callable[[str], Path], suffix: str, durable: bool
) -> None:
    path = disk("size=1m") / f"model{suffix}"
    save({"x": torch.ones(1)}, path)
    old = path.read_bytes()
    with pytest.raises(SaveRefused) as caught:
        save({"x": torch.ones(1 << 19)}, path, overwrite=True, durable=durable)
    assert str(caught.value) == (
        f"{path}: the disk is full; nothing was changed. Free some space, or save elsewhere."
    )
    assert path.read_bytes() == old
    assert names(path.parent) == [path.name]


def test_a_disk_without_room_for_names_is_full(disk: Callable[[str], Path]) -> None:
    path = disk("size=1m,nr_inodes=2") / "model.pth"
    save(STATE, path)
    assert "the disk is full; nothing was changed" in refusal(path, overwrite=True)
    assert read(path)["x"].eq(2.0).all()


# --- Several at once ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Saves]:
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork")
    with Saves() as server:
        yield server


def test_of_several_that_save_to_one_free_name_one_wins(server: Saves, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for _ in range(10):
        outcomes = server.race(path, 4, rounds=1, overwrite=False)
        winner = outcomes.index("saved")
        assert read(path)["x"].unique().tolist() == [winner + 2.0]
        del outcomes[winner]
        assert len([said for said in outcomes if "there is something already" in said]) == 3
        assert names(tmp_path) == [path.name]
        path.unlink()


@suffixes
def test_several_that_replace_one_file_leave_a_whole_one(
    server: Saves, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    save(STATE, path)
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            seen.append(len(read(path)["x"].unique()))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert server.race(path, 4, rounds=20, overwrite=True) == ["saved"] * 4
    finally:
        stop.set()
        reader.join()
    assert set(seen) == {1}
    assert names(tmp_path) == [path.name]


# --- A save that goes wrong at each of its system calls ----------------------------------------


@pytest.fixture(scope="module")
def saves(server: Saves) -> Saves:
    if not can_trace():
        pytest.skip("there is no strace, or it may not be used")
    return server


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / f"model{request.param}"


def put_old(path: Path, *, overwrite: bool) -> bytes:
    """Make the old file, if there is to be one."""
    path.unlink(missing_ok=True)
    if overwrite:
        save({"old": torch.ones(3)}, path)
        return path.read_bytes()
    return b""


def now(path: Path, old: bytes) -> str:
    """Return `old` or `new`, and fail for anything else."""
    if (path.read_bytes() if path.exists() else b"") == old:
        return "old"
    tensors = read(path)
    assert tensors.keys() == set("xyz")
    assert all(tensor.eq(2.0).all() for tensor in tensors.values())
    assert all(tensor.eq(2.0).all() for tensor in torchkeep.load(path).values())
    return "new"


def each_place(saves: Saves, path: Path, *, overwrite: bool) -> Iterator[tuple[Place, bytes]]:
    """Yield the system calls by which a save changes the disk, with the old file in its place."""
    put_old(path, overwrite=overwrite)
    places = [place for place in saves.places(path, overwrite=overwrite) if place.name in CHANGING]
    assert {"openat", "pwrite64", "fsync", "unlink"} <= {place.name for place in places}
    for place in places:
        yield place, put_old(path, overwrite=overwrite)


sweeps = pytest.mark.parametrize("path", [".safetensors", ".pth"], indirect=True)


@sweeps
@folder_or_file
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(
    saves: Saves, path: Path, overwrite: bool
) -> None:
    left, found = [], set()
    for place, old in each_place(saves, path, overwrite=overwrite):
        options = injected(place, f"signal={signal.SIGKILL.name}")
        assert saves.save(path, *options, overwrite=overwrite) == "killed", place
        found.add(now(path, old))
        others = [item for item in path.parent.iterdir() if item != path]
        assert all(TEMPORARY_MARK in item.name for item in others), place
        assert remove_temporaries(path.parent) == others
        left += others
    assert found == {"old", "new"}
    assert left, "no temporary was ever left behind; the test proves nothing"


@sweeps
@folder_or_file
def test_a_save_that_is_interrupted_leaves_no_temporary(
    saves: Saves, path: Path, overwrite: bool
) -> None:
    found = set()
    for place, old in each_place(saves, path, overwrite=overwrite):
        options = injected(place, f"signal={signal.SIGINT.name}")
        assert saves.save(path, *options, overwrite=overwrite) == "raised: KeyboardInterrupt: "
        found.add(now(path, old))
        assert set(names(path.parent)) <= {path.name}, place
    assert found == {"old", "new"}


UNSYNCED = (
    "{path}: it is written and in its place, but its folder could not be synced ({reason}), so "
    "that a power loss may undo it. Check the disk."
)
FAILURES = {
    "EIO": ("{path}: could not be written (Input/output error).", "Input/output error"),
    "ENOSPC": (
        "{path}: the disk is full; nothing was changed. Free some space, or save elsewhere.",
        "No space left on device",
    ),
}


@sweeps
@folder_or_file
@pytest.mark.parametrize("error", FAILURES)
def test_a_save_that_fails_leaves_the_old_file_or_says_that_the_new_one_is_there(
    saves: Saves, path: Path, overwrite: bool, error: str
) -> None:
    message, reason = FAILURES[error]
    outcomes: dict[str, str] = {}
    for place, old in each_place(saves, path, overwrite=overwrite):
        said = saves.save(path, *injected(place, f"error={error}"), overwrite=overwrite)
        outcomes[said] = now(path, old)
        assert outcomes[said] == ("old" if "nothing was changed" in said else outcomes[said])
        if place.name != "unlink":
            assert set(names(path.parent)) <= {path.name}, place
        assert all(TEMPORARY_MARK in name for name in set(names(path.parent)) - {path.name})
        remove_temporaries(path.parent)
    assert outcomes == {
        f"refused: {message.format(path=path)}": "old",
        f"refused: {UNSYNCED.format(path=path, reason=reason)}": "new",
        "saved": "new",
    }
