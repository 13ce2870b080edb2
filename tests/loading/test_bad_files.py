"""Loading from what is no model, or not this one, or changes meanwhile: one clear error each."""

from __future__ import annotations

import io
import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    FileProblem,
    FileUnreadable,
    LoadMismatch,
    NotAModelFile,
)
from torchkeep.files import InputFile

CHANGED = (
    "the file was changed or replaced while it was read. Wait until it is written, and read it "
    "again."
)


def model(value: float = 0.0) -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    for parameter in made.parameters():
        nn.init.constant_(parameter, value)
    return made


def into(path: Path | str) -> dict[str, torch.Tensor]:
    target = model(-1.0)
    torchkeep.load_into(target, path)
    return target.state_dict()


def looked_up(path: Path | str) -> dict[str, torch.Tensor]:
    with torchkeep.open(path) as file:
        return dict(file)


CALLS: dict[str, Callable[[Path | str], dict[str, torch.Tensor]]] = {
    "load": torchkeep.load,
    "load_into": into,
    "open": looked_up,
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[[Path | str], Any]:
    return CALLS[request.param]


# --- What is no model --------------------------------------------------------------------------


def nothing(path: Path) -> None:
    pass


def lfs_pointer(path: Path) -> None:
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 102400000\n"
    )


def picture(path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8)).save(path, "PNG")


def half(path: Path) -> None:
    stream = io.BytesIO()
    torch.save(model().state_dict(), stream)
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


WRONG: dict[str, tuple[Callable[[Path], object], type[FileProblem], str]] = {
    "nothing": (nothing, FileMissing, "there is no such file. Check the path."),
    "a folder": (Path.mkdir, NotAModelFile, "the folder is empty. Check the path."),
    "a pipe": (os.mkfifo, FileUnreadable, "this is a device or a pipe, not a file."),
    "an empty file": (
        Path.touch,
        NotAModelFile,
        "the file is empty. Save or download it again.",
    ),
    "a web page": (
        lambda path: path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        NotAModelFile,
        "this is a web page, not a model. The download went wrong (a log-in or an error page?): "
        "open it in a browser.",
    ),
    "a pointer of Git LFS": (
        lfs_pointer,
        NotAModelFile,
        "this is a Git LFS pointer, not the file it stands for. Fetch the model itself with "
        "`git lfs pull`.",
    ),
    "a picture": (picture, NotAModelFile, "this is a PNG picture, not a model. Check the path."),
    "half a model": (
        half,
        DamagedFile,
        "the archive is truncated: its directory, which stands at the end, is missing. Copy or "
        "download the file again.",
    ),
    "a link to nowhere": (
        lambda path: path.symlink_to(path.parent / "nowhere"),
        FileMissing,
        "there is no such file. Check the path.",
    ),
    "a link to itself": (
        lambda path: path.symlink_to(path),
        FileUnreadable,
        "the file can't be read (Too many levels of symbolic links).",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model_is_named(tmp_path: Path, call: Callable[..., Any], name: str) -> None:
    make, kind, message = WRONG[name]
    path = tmp_path / "model.pth"
    make(path)
    with pytest.raises(kind) as caught:
        call(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    torchkeep.save(model(), path)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path.chmod(0)
    if os.geteuid() == 0:  # whom no mode stops
        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileUnreadable) as caught:
        call(path)
    assert str(caught.value) == f"{path}: the file may not be read. Check its mode."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the path is empty. Check what gave it."),
        ("a\0b.pth", "no file can be called so (with a null byte)."),
        ("x" * 300 + ".pth", "the file can't be read (File name too long)."),
        ("file.pth/model.pth", "there is no such file. Check the path."),
    ],
)
def test_a_name_that_no_file_has_is_refused(
    tmp_path: Path, call: Callable[..., Any], name: str, message: str
) -> None:
    (tmp_path / "file.pth").touch()
    with pytest.raises(FileProblem) as caught:
        call(f"{tmp_path}/{name}" if name else "")
    assert str(caught.value).endswith(message)


def test_a_name_can_not_break_the_message(tmp_path: Path, call: Callable[..., Any]) -> None:
    with pytest.raises(FileMissing) as caught:
        call(tmp_path / "a\nmodel.pth: all is well\x1b[2K")
    assert r"/a\nmodel.pth: all is well\x1b[2K: there is no such file" in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb.pth", os.fsdecode(b"\xff\xfe.pth"), " .pth", "größe.pth"])
def test_a_model_of_any_name_is_loaded(tmp_path: Path, call: Callable[..., Any], name: str) -> None:
    try:
        torchkeep.save(model(3.0), tmp_path / name)
    except torchkeep.TorchkeepError:
        pytest.skip("the file system has no such names")
    assert call(tmp_path / name)["0.bias"].eq(3.0).all()


def test_another_model_is_told_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torchkeep.save(model(), path)
    other = nn.Sequential(nn.Linear(64, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(LoadMismatch) as caught:
        torchkeep.load_into(other, path)
    assert str(caught.value).startswith(f"{path}: the file and the model differ: ")
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


# --- Shapes that overflow ----------------------------------------------------------------------

NUMBER = 2**62
SHAPES: dict[str, tuple[list[int], list[int]]] = {
    "more elements than a number counts": ([NUMBER, 4], [4, 1]),
    "more elements than a number counts, and none": ([NUMBER, NUMBER, 0], [0, 0, 1]),
    "a negative size": ([-1, 4], [4, 1]),
    "strides that overflow": ([2, 2], [NUMBER, NUMBER]),
    "a negative stride": ([2, 2], [-2, 1]),
    "one more than there is": ([5], [1]),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_overflows_is_refused_in_a_pickle(
    tmp_path: Path, call: Callable[..., Any], name: str
) -> None:
    shape, stride = SHAPES[name]

    class Hostile:
        def __reduce__(self) -> Any:
            storage = torch.ones(4).storage()
            view = (storage, 0, tuple(shape), tuple(stride), False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, view

    torch.save({"0.weight": Hostile()}, tmp_path / "model.pth")
    with pytest.raises((FileProblem, LoadMismatch)) as caught:
        call(tmp_path / "model.pth")
    assert str(caught.value).startswith(f"{tmp_path}/model.pth: ")


@pytest.mark.parametrize("name", [name for name in SHAPES if "stride" not in name])
def test_a_shape_that_overflows_is_refused_in_safetensors(
    tmp_path: Path, call: Callable[..., Any], name: str
) -> None:
    path = tmp_path / "model.safetensors"
    row = {"dtype": "F32", "shape": SHAPES[name][0], "data_offsets": [0, 16]}
    header = json.dumps({"0.weight": row}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(DamagedFile, match=r"model\.safetensors: .*0\.weight"):
        call(path)


# --- Files that change -------------------------------------------------------------------------


@pytest.fixture(params=["ours.safetensors", "ours.pth", "theirs.pth"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of ones; that of `torch.save` has no digests."""
    path = tmp_path / request.param
    write(path, 1.0)
    os.utime(path, ns=(0, 0))  # whatever follows is later, however coarse the clock is
    return path


def write(path: Path, value: float) -> None:
    if "ours" in path.name:
        torchkeep.save(model(value), path, overwrite=True)
    else:
        torch.save(model(value).state_dict(), path)


def replace(path: Path) -> None:
    """Do what a careful writer does: another file takes the name."""
    new = path.with_name(f"new-{path.name}")
    write(new, 2.0)
    new.replace(path)


def rewrite(path: Path) -> None:
    """Do what a careless writer does: the file gets other bytes, as many as before."""
    new = path.with_name(f"new-{path.name}")
    write(new, 2.0)
    path.write_bytes(new.read_bytes())


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES = {"replaced": replace, "rewritten": rewrite, "shrunk": shrink}


def is_whole(state: dict[str, torch.Tensor]) -> bool:
    values = {value.item() for tensor in state.values() for value in tensor.unique()}
    return values in ({1.0}, {2.0})


class Moment:
    """Does something to a file once, the first time that something is called."""

    def __init__(self, path: Path, change: Callable[[Path], None]) -> None:
        self.is_over = False
        self._change = change
        self._path = path
        self._lock = threading.Lock()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if not self.is_over:
                    self.is_over = True
                    self._change(self._path)
            return function(*args, **kwargs)

        return changed


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CALLS)
def test_a_file_that_changes_after_it_was_described_is_not_read(
    path: Path, name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"load": "trees", "load_into": "into", "open": "lazy"}[name]
    moment = Moment(path, CHANGES[change])
    monkeypatch.setattr(
        f"torchkeep.loading.{module}.TensorReader", moment.before(torchkeep.tensors.TensorReader)
    )
    with pytest.raises(DamagedFile) as caught:
        CALLS[name](path)
    assert str(caught.value) == f"{path}: {CHANGED}"
    assert moment.is_over


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_two_look_ups_is_not_read_again(
    path: Path, change: str
) -> None:
    with torchkeep.open(path) as file:
        assert file["0.weight"].eq(1.0).all()
        CHANGES[change](path)
        with pytest.raises(DamagedFile) as caught:
            file["1.weight"]
    assert str(caught.value) == f"{path}: {CHANGED}"


@pytest.mark.parametrize("change", ["rewritten", "shrunk"])
def test_a_file_that_is_written_to_while_it_is_read_is_told(
    path: Path, call: Callable[..., Any], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = Moment(path, CHANGES[change])
    monkeypatch.setattr(InputFile, "read_into", moment.before(InputFile.read_into))
    with pytest.raises(DamagedFile) as caught:
        call(path)
    assert str(caught.value) == f"{path}: {CHANGED}"
    assert moment.is_over


@pytest.mark.parametrize("change", [replace, Path.unlink])
@pytest.mark.parametrize("call", [torchkeep.load, into])  # a look-up opens the file anew
def test_a_file_that_loses_its_name_while_it_is_read_is_read_to_its_end(
    path: Path,
    call: Callable[..., Any],
    change: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = Moment(path, change)
    monkeypatch.setattr(InputFile, "read_into", moment.before(InputFile.read_into))
    state = call(path)
    assert moment.is_over
    assert all(tensor.eq(1.0).all() for tensor in state.values())


def test_a_mapped_model_outlives_that_its_file_is_replaced(path: Path) -> None:
    state = torchkeep.load(path, mmap=True)
    replace(path)
    assert is_whole(state)
    assert state["0.weight"].eq(1.0).all()


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_before_it_is_mapped_is_told(
    path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = Moment(path, CHANGES[change])
    monkeypatch.setattr(
        "torchkeep.tensors._check_named", moment.before(torchkeep.tensors._check_named)
    )
    with pytest.raises(DamagedFile) as caught:
        torchkeep.load(path, mmap=True)
    assert str(caught.value) == f"{path}: {CHANGED}"


def test_a_model_that_is_saved_again_and_again_is_always_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path, 1.0)
    stop = threading.Event()

    def save_for_ever() -> None:
        while not stop.is_set():
            for value in (2.0, 1.0):
                torchkeep.save(model(value), path, overwrite=True, durable=False)

    writer = threading.Thread(target=save_for_ever)
    writer.start()
    seen = set()
    try:
        for _ in range(50):
            seen |= {outcome(call, path) for call in CALLS.values()}
    finally:
        stop.set()
        writer.join()
    assert "whole" in seen
    assert seen <= {"whole", f"{path}: {CHANGED}"}


def outcome(call: Callable[..., Any], path: Path) -> str:
    try:
        return "whole" if is_whole(call(path)) else "torn"
    except DamagedFile as error:
        return str(error)
