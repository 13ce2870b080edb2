"""A save that is cut short: killed, or out of room. The old file is there, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchkeep.errors import SaveRefused
from torchkeep.files import TEMPORARY_MARK, remove_temporaries
from torchkeep.saving import save

_ENDLESS_SAVES = """
import sys, torch
from torchkeep.saving import save
torch.set_num_threads(1)
state = {f"t{n}": torch.full((1 << 20,), float(n)) for n in range(16)}
print("ready", flush=True)
while True:
    save(state, sys.argv[1], overwrite=True, metadata={"date": "new"})
"""


def is_old_or_whole(path: Path, old: bytes) -> bool:
    if path.read_bytes() == old:
        return True
    if path.suffix == ".pth":
        found = torch.load(path, weights_only=True)
    else:
        from safetensors.torch import load_file

        found = load_file(path)
    return all(bool((found[f"t{n}"] == n).all()) for n in range(16))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_killed_save_leaves_the_old_file_or_the_whole_new_one(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"state{suffix}"
    save({"old": torch.ones(3)}, path)
    old = path.read_bytes()
    in_the_middle = 0
    for trial in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", _ENDLESS_SAVES, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.003 + 0.009 * trial)
            child.send_signal(signal.SIGKILL)
        in_the_middle += bool(remove_temporaries(tmp_path))
        assert is_old_or_whole(path, old)
        assert [item.name for item in tmp_path.iterdir()] == [path.name]
        if in_the_middle >= 2:
            break
    assert in_the_middle, "no trial hit a save; the test proves nothing"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_save_without_room_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    code = """
import resource, sys, torch
from torchkeep.errors import SaveRefused
from torchkeep.saving import save
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    save({"x": torch.ones(1 << 20)}, sys.argv[1], overwrite=True)
except SaveRefused as error:
    print(error)
"""
    path = tmp_path / f"state{suffix}"
    save({"old": torch.ones(3)}, path)
    old = path.read_bytes()
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert f"{path}: larger than a file may be here; nothing was changed." in child.stdout
    assert path.read_bytes() == old
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_an_error_in_the_middle_of_a_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pth"
    save({"old": torch.ones(3)}, path)
    old = path.read_bytes()
    monkeypatch.setattr("torchkeep.writing.torch_zip.central_directory", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        save({"x": torch.ones(10)}, path, overwrite=True)
    assert path.read_bytes() == old
    assert not any(TEMPORARY_MARK in item.name for item in tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SaveRefused, match=r"its folder does not exist\. Create the folder first"):
        save({"x": torch.ones(1)}, tmp_path / "no" / "x.pth")
