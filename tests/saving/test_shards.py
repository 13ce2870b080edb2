"""writing/shards.py through `save`: what Hugging Face's libraries and torchkeep read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchkeep
from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.formats import describe
from torchkeep.formats.own.metadata import TIED
from torchkeep.loading import load
from torchkeep.saving import save
from torchkeep.writing.payload import of_bytes
from torchkeep.writing.safetensors import TensorData
from torchkeep.writing.shards import write_shards

INDEX = "model.safetensors.index.json"


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.head = torch.nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- How a state dict is split -----------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_a_state_dict_is_split_as_huggingface_hub_splits_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    tensors = {f"t{n}": torch.zeros(size, dtype=torch.uint8) for n, size in enumerate(sizes)}
    theirs = huggingface_hub.split_torch_state_dict_into_shards(tensors, max_shard_size=most)
    save(tensors, folder / "model.safetensors", shard_nbytes=most, durable=False)
    files = [name for name, names in theirs.filename_to_tensors.items() if names]
    if len(files) == 1:
        assert names_in(folder) == ["model.safetensors"]
        return
    assert names_in(folder) == sorted([*files, INDEX])
    assert index_of(folder)["weight_map"] == theirs.tensor_to_filename
    assert index_of(folder)["metadata"]["total_size"] == sum(sizes)


def test_what_fits_into_one_file_is_one_file_without_an_index(tmp_path: Path) -> None:
    report = save({"x": torch.ones(2)}, tmp_path / "model.safetensors", shard_nbytes=8)
    assert names_in(tmp_path) == ["model.safetensors"]
    assert report.files == ()


def test_no_tensors_are_one_file(tmp_path: Path) -> None:
    save({}, tmp_path / "model.safetensors", shard_nbytes=8)
    assert names_in(tmp_path) == ["model.safetensors"]


# --- What is read back -------------------------------------------------------------------------


def test_huggingface_hub_loads_the_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(5)))
    save(model, tmp_path / "model.safetensors", shard_nbytes=2500)
    other = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(5)))
    result = huggingface_hub.load_torch_model(other, tmp_path)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_tied_tensors_stand_in_one_file_and_come_back_under_both_names(tmp_path: Path) -> None:
    model = Tied()
    report = save(model, tmp_path / "model.safetensors", shard_nbytes=1000)
    assert report.tied == {"head.weight": "embedding.weight"}
    assert len(report.files) == 4
    assert report.digests.keys() == model.state_dict().keys()
    assert report.nbytes == sum(path.stat().st_size for path in report.files)
    assert str(report).startswith(f"{tmp_path / INDEX}: 10 tensors, ")
    assert str(report).endswith(" in 3 files")
    index = index_of(tmp_path)
    assert "head.weight" not in index["weight_map"]
    assert index["metadata"]["head.weight"] == "embedding.weight"
    for path in (tmp_path, tmp_path / INDEX):
        found = load(path)
        found = found.get(INDEX, found)
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[name], item) for name, item in model.state_dict().items())
        assert found["head.weight"] is found["embedding.weight"]
    assert torchkeep.load_into(Tied(), tmp_path / INDEX)
    assert torchkeep.verify(tmp_path).verified


def test_names_that_huggingface_hub_left_out_of_its_shards_come_back(tmp_path: Path) -> None:
    model = Tied()
    huggingface_hub.save_torch_model(model, tmp_path, max_shard_size=1000)
    found = load(tmp_path / INDEX)
    assert len(names_in(tmp_path)) > 2
    assert all(torch.equal(found[name], item) for name, item in model.state_dict().items())


def test_many_tied_names_are_all_found_again(tmp_path: Path) -> None:
    shared = torch.ones(4)
    state = {"other": torch.zeros(4), **{f"a_name_{n}": shared for n in range(40)}}
    save(state, tmp_path / "model.safetensors", shard_nbytes=16)
    assert load(tmp_path / INDEX).keys() == state.keys()
    # However long it is, since without it any text of the metadata may pass for a name.
    table = index_of(tmp_path)["metadata"][TIED]
    assert len(table) > 200
    assert describe(tmp_path / INDEX).metadata[TIED] == table


def test_the_metadata_stands_in_the_index_and_is_shown(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2)}
    given = {"version": "1.2", "train": {"lr": 0.1}}
    save(state, tmp_path / "model.safetensors", shard_nbytes=8, metadata=given)
    metadata = index_of(tmp_path)["metadata"]
    assert metadata["version"] == "1.2"
    assert json.loads(metadata["train"]) == {"lr": 0.1}
    found = torchkeep.inspect(tmp_path / INDEX).contents.metadata
    assert found["version"] == "1.2"
    part = describe(tmp_path / "model-00001-of-00002.safetensors").metadata
    assert {"date", "torch_version", "format"} <= part.keys()


def test_a_damaged_shard_is_found_by_its_digest(tmp_path: Path) -> None:
    report = save(Tied(), tmp_path / "model.safetensors", shard_nbytes=1000)
    data = bytearray(report.files[2].read_bytes())
    data[-1] ^= 1
    report.files[2].write_bytes(data)
    with pytest.raises(torchkeep.TorchkeepError, match="differs from what was saved"):
        load(tmp_path / INDEX)


# --- Earlier saves -----------------------------------------------------------------------------


def test_nothing_of_an_earlier_save_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "model-final.safetensors").write_bytes(b"not of this model")
    large = {f"t{n}": torch.ones(2) for n in range(5)}
    save(large, path, shard_nbytes=8)
    save({"x": torch.ones(2), "y": torch.ones(2)}, path, shard_nbytes=8, overwrite=True)
    two = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names_in(tmp_path) == [*two, "model-final.safetensors", INDEX]
    save({"z": torch.ones(2)}, path, shard_nbytes=8, overwrite=True)
    assert names_in(tmp_path) == ["model-final.safetensors", "model.safetensors"]
    save(large, path, shard_nbytes=8, overwrite=True)
    assert "model.safetensors" not in names_in(tmp_path)
    assert load(tmp_path / INDEX).keys() == large.keys()


@pytest.mark.parametrize("taken", ["model.safetensors", INDEX, "model-00007-of-00009.safetensors"])
def test_an_earlier_save_is_left_alone_unless_it_may_be_replaced(
    tmp_path: Path, taken: str
) -> None:
    (tmp_path / taken).write_bytes(b"precious")
    state = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(SaveRefused, match=f"{taken}: there is something already"):
        save(state, tmp_path / "model.safetensors", shard_nbytes=8)
    assert names_in(tmp_path) == [taken]


_KILLED_AT = """
import os, pathlib, sys, torch
from torchkeep.saving import save
run, num_tensors = pathlib.Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def counted(call):
    def counting(*args, **kwargs):
        global calls
        calls += 1
        if calls == step:
            os._exit(9)
        return call(*args, **kwargs)
    return counting
for step in range(1, 40):
    if os.fork():  # to import PyTorch for each one would take minutes
        _, status = os.wait()
        if status == 0:
            break
        continue
    pathlib.Path.replace = counted(pathlib.Path.replace)
    os.unlink = counted(os.unlink)
    pathlib.Path.unlink = counted(pathlib.Path.unlink)
    state = {f"t{n}": torch.full((2,), 2.0) for n in range(num_tensors)}
    path = run / str(step) / "model.safetensors"
    save(state, path, shard_nbytes=8, overwrite=True, durable=False)
    os._exit(0)
print(step)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("num_tensors", [3, 4])
def test_a_killed_save_leaves_the_earlier_one_the_new_one_or_no_index(
    tmp_path: Path, num_tensors: int
) -> None:
    old = {f"t{n}": torch.full((2,), 1.0) for n in range(3)}
    for step in range(1, 40):
        (tmp_path / str(step)).mkdir()
        save(old, tmp_path / str(step) / "model.safetensors", shard_nbytes=8, durable=False)
    command = [sys.executable, "-c", _KILLED_AT, tmp_path, str(num_tensors)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    num_calls = int(done.stdout)  # the first that was not killed
    assert 5 < num_calls < 39
    outcomes = [outcome(tmp_path / str(step), num_tensors) for step in range(1, num_calls + 1)]
    assert outcomes[-1] == "new"
    # Shards of other names leave the earlier save whole until the new one is.
    between = "no index" if num_tensors == 3 else "new"
    assert list(dict.fromkeys(outcomes)) == list(dict.fromkeys(["old", between, "new"]))


def outcome(folder: Path, num_tensors: int) -> str:
    if not (folder / INDEX).exists():
        return "no index"
    found = load(folder / INDEX)
    values = {value for tensor in found.values() for value in tensor.tolist()}
    assert (len(found), values) in [(3, {1.0}), (num_tensors, {2.0})]
    return "old" if values == {1.0} else "new"


# --- Refusals ----------------------------------------------------------------------------------


def test_a_limit_for_a_format_that_is_never_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match=r"only safetensors can be split into shards\. Give"):
        save({"x": torch.ones(1)}, tmp_path / "model.pth", shard_nbytes=100)


@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_of_nothing_is_refused(tmp_path: Path, most: int) -> None:
    with pytest.raises(WrongArgument, match=f"shard_nbytes is {most}, and a file needs room"):
        save({"x": torch.ones(1)}, tmp_path / "model.safetensors", shard_nbytes=most)


def test_a_metadata_key_that_the_index_has_itself_is_refused(tmp_path: Path) -> None:
    two = {name: TensorData("uint8", (2,), of_bytes(b"ab")) for name in "xy"}
    with pytest.raises(SaveRefused, match="metadata key 'total_size' is the index's own"):
        write_shards(two, tmp_path / "model.safetensors", 2, metadata={"total_size": "3"})
    assert names_in(tmp_path) == []


def test_a_tensor_that_the_format_lacks_leaves_nothing_behind(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(SaveRefused, match="'b' has dtype complex128"):
        save(state, tmp_path / "model.safetensors", shard_nbytes=8)
    assert names_in(tmp_path) == []
