"""A file's tensors, each read when it is asked for, whatever the container."""

from __future__ import annotations

import gc
import gzip
import io
import os
import pickle
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchkeep
from formats.samples import SAMPLES, Sample
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, NotAModelFile
from torchkeep.pickles.limits import Limits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested"),
]
LOADABLE = [
    sample
    for sample in SAMPLES
    if sample.container in ("torch-zip", "torch-legacy") and not sample.name.endswith("model")
]


def tensors_of(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Return the live tensors of a tree by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
        dtype = value.dtype if isinstance(value, torch.TypedStorage) else torch.uint8
        return {path: torch.empty(0, dtype=dtype).set_(value)}
    if not isinstance(value, dict | list | tuple):
        return {}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, item in items:
        found |= tensors_of(item, f"{path}.{key}" if path else str(key))
    return found


def same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert (mine.dtype, mine.layout) == (theirs.dtype, theirs.layout)
    if mine.is_nested:
        rows = zip(mine.unbind(), theirs.unbind(), strict=True)
        return all(torch.equal(one, other) for one, other in rows)
    assert mine.shape == theirs.shape
    if mine.device.type == "meta":
        return theirs.device.type == "meta"
    if mine.is_quantized:
        assert mine.qscheme() == theirs.qscheme()
        return torch.equal(mine.dequantize(), theirs.dequantize())
    if mine.layout is not torch.strided:
        return torch.equal(mine.to_dense(), theirs.to_dense())
    return torch.equal(
        mine.contiguous().view(-1).view(torch.uint8), theirs.contiguous().view(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("sample", LOADABLE, ids=lambda sample: sample.name)
def test_every_tensor_is_what_torch_loads(sample: Sample, mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sample.write(path)
    theirs = tensors_of(torch.load(path, weights_only=False))  # the file was written a line above
    with torchkeep.open(path, mmap=mmap) as file:
        assert list(file) == list(theirs)
        assert len(file) == len(theirs)
        for name, tensor in theirs.items():
            assert same(file[name], tensor), name
            assert file.entry(name) is file.entries[name]


def test_a_tensor_in_a_plain_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    weight = torch.arange(6.0).view(2, 3)
    path.write_bytes(pickle.dumps({"weight": weight, "turned": weight.t()}))
    file = torchkeep.open(path)
    assert torch.equal(file["weight"], weight)
    assert torch.equal(file["turned"], weight.t())
    assert file["turned"].stride() == (1, 3)
    assert repr(file) == f"<TensorFile {str(path)!r}: 2 tensors>"


def test_only_the_tensor_that_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(1000), "b": torch.zeros(2)}, path)
    data = bytearray(path.read_bytes())
    place = data.index(torch.ones(1000).numpy().tobytes())
    data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    file = torchkeep.open(path)
    assert torch.equal(file["b"], torch.zeros(2))
    assert file["a"][0].isnan()


def test_a_tensor_that_differs_from_its_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torchkeep.save({"a.weight": torch.ones(10)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x01")
    with pytest.raises(DamagedFile, match=r"tensor 'a.weight' differs from what was saved"):
        torchkeep.open(path)["a.weight"]


def test_an_unknown_name_and_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(KeyError, match="b"):
        torchkeep.open(path)["b"]
    path.write_text("<html>")
    with pytest.raises(NotAModelFile, match="this is a web page"):
        torchkeep.open(path)


# --- What lies packed in an archive --------------------------------------------------------------


def packed(folder: Path, kind: str, content: bytes) -> Path:
    """Return an archive in which a file is packed."""
    path, member = folder / f"a.{kind}", folder / "m.pt"
    member.write_bytes(content)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(member, "m.pt")
    elif kind == "tar.xz":
        with tarfile.open(path, "w:xz") as archive:
            archive.add(member, "m.pt")
    elif kind == "zip.gz":  # an archive that lies packed itself
        inner = packed(folder, "zip", content)
        path.write_bytes(gzip.compress(inner.read_bytes()))
    else:
        path = folder / "m.pt.gz"
        path.write_bytes(gzip.compress(content))
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(folder))
    return folder


@pytest.mark.parametrize("kind", ["zip", "tar.xz", "gz", "zip.gz"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_packed_model_is_read_from_a_temporary_file(
    tmp_path: Path, temporary: Path, kind: str, mmap: bool
) -> None:
    model = torch.nn.Linear(3, 2)
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    path = packed(tmp_path, kind, content.getvalue())
    with torchkeep.open(path, mmap=mmap) as file:
        name = next(name for name in file if name.endswith("weight"))
        assert torch.equal(file[name], model.weight)
        assert len(list(temporary.rglob("*"))) > 1
    assert not list(temporary.iterdir())
    loaded = torchkeep.load(path, select="auto", mmap=mmap)
    assert torch.equal(loaded["bias"], model.bias)
    other = torch.nn.Linear(3, 2)
    assert torchkeep.load_into(other, path).coverage == 1
    assert torch.equal(other.weight, model.weight)
    assert not list(temporary.iterdir())


def test_an_inspection_unpacks_nothing_onto_the_disk(tmp_path: Path, temporary: Path) -> None:
    content = io.BytesIO()
    torch.save({"a.weight": torch.ones(2)}, content)
    torchkeep.inspect(packed(tmp_path, "zip", content.getvalue()))
    assert not list(temporary.iterdir())


def test_the_temporary_file_goes_with_the_mapping(tmp_path: Path, temporary: Path) -> None:
    content = io.BytesIO()
    torch.save({"a.weight": torch.ones(2)}, content)
    file = torchkeep.open(packed(tmp_path, "zip", content.getvalue()))
    assert list(temporary.iterdir())
    del file
    gc.collect()
    assert not list(temporary.iterdir())


def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, temporary: Path) -> None:
    content = io.BytesIO()
    torch.save({"a.weight": torch.rand(10_000)}, content)
    path = packed(tmp_path, "gz", content.getvalue())
    with pytest.raises(LimitReached, match=r"limit pickle_nbytes=20,000 allows"):
        torchkeep.load(path, limits=Limits(pickle_nbytes=20_000))
    assert not list(temporary.iterdir())


def test_no_room_for_the_temporary_file_is_told(tmp_path: Path, temporary: Path) -> None:
    content = io.BytesIO()
    torch.save({"a.weight": torch.ones(2)}, content)
    path = packed(tmp_path, "zip", content.getvalue())
    temporary.rmdir()
    with pytest.raises(FileProblem, match=r"no room to unpack .* bytes .*Set TMPDIR"):
        torchkeep.load(path)


def test_numpy_arrays_are_tensors_of_the_mapping(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"fc.weight": array}))
    with torchkeep.open(tmp_path / "a.pkl") as file:
        assert list(file) == ["fc.weight"]
        assert torch.equal(file["fc.weight"], torch.from_numpy(array))
    integrity = torchkeep.verify(tmp_path / "a.pkl")
    assert (integrity.ok, integrity.num_unchecked, integrity.num_unread) == (True, 1, 0)


def test_a_limit_of_the_callers_holds_for_what_is_chosen_from_the_file_too(tmp_path: Path):
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "m.pth")
    match = r"m\.pth: the file's values stand in more places than the limit"
    for read in (torchkeep.open, partial(torchkeep.load, select="auto")):
        with pytest.raises(LimitReached, match=match):
            read(tmp_path / "m.pth", limits=Limits(places=1))
