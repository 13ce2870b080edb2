"""loading.load: what a file holds, with live tensors and nothing run."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch as reference
import torch

from torchkeep.contents import DictObject, Global, Object
from torchkeep.errors import DamagedFile, LoadMismatch
from torchkeep.formats import describe
from torchkeep.identify.digests import stored_digests
from torchkeep.loading import load
from torchkeep.saving import save
from torchkeep.tensors import same_bits


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", ["ours.pth", "torch.pth", "legacy.pth"])
def test_a_tree_comes_back_as_plain_torch_loads_it(tmp_path: Path, name: str, mmap: bool) -> None:
    base = torch.arange(6.0)
    tree = {
        "model": net().state_dict(),
        "list": [base, base[2:], (1, "x", None)],
        3: {"bytes": b"ab", "float": 2.5, "set": {1, 2}},
        "weight": torch.nn.Parameter(torch.ones(2), requires_grad=False),
    }
    path = tmp_path / name
    if name == "ours.pth":
        save(tree, path)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=name == "torch.pth")
    found, expected = load(path, mmap=mmap), torch.load(path, weights_only=True)
    assert repr(found) == repr(expected)
    assert type(found["model"]) is OrderedDict
    assert found["model"]._metadata == expected["model"]._metadata
    assert found["list"][0].untyped_storage().data_ptr() == (
        found["list"][1].untyped_storage().data_ptr()
    )
    assert type(found["weight"]) is torch.nn.Parameter


@pytest.mark.parametrize("mmap", [False, True])
def test_safetensors_come_back_with_the_names_that_were_tied(tmp_path: Path, mmap: bool) -> None:
    shared = torch.randn(3)
    state = {"a.w": shared, "b.w": shared, "c.w": torch.ones(2)}
    save(state, tmp_path / "a.safetensors")
    for select in (None, "auto"):
        found = load(tmp_path / "a.safetensors", mmap=mmap, select=select)
        assert found.keys() == state.keys()
        assert all(same_bits(found[key], value) for key, value in state.items())
        assert found["a.w"] is found["b.w"]
    reference.save_file({"x": shared}, tmp_path / "b.safetensors")
    assert same_bits(load(tmp_path / "b.safetensors")["x"], shared)


def test_metadata_that_names_a_tensor_makes_none(tmp_path: Path) -> None:
    save({"a.w": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"best": "a.w"})
    assert load(tmp_path / "a.safetensors").keys() == {"a.w"}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_flipped_bit_of_any_tensor_is_found_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    base = torch.arange(6.0)
    state = {"base": base, "turned": torch.randn(3, 2).t(), "half": torch.ones(3).half()}
    save(state, path)
    assert all(same_bits(load(path)[key], value) for key, value in state.items())
    clean = path.read_bytes()
    for key, entry in describe(path).root.items():
        data = bytearray(clean)
        data[entry.storage.offset + entry.nbytes - 1] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match=f"{name}: tensor '{key}' differs from what was sav"):
            load(path)
        assert load(path, mmap=True).keys() == state.keys()  # nothing was read yet


def test_digests_go_with_tensors_whose_paths_or_memory_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    base = torch.arange(6.0)
    inner = {"b": torch.ones(2)}
    tree = {"a": inner, "a.b": torch.zeros(2), "again": inner, "views": [base, base[1::2]]}
    save(tree, path)
    assert len(stored_digests(describe(path))) == 4
    assert repr(load(path)) == repr(tree)
    entries = describe(path).root
    data = bytearray(path.read_bytes())
    data[entries["views"][1].storage.offset + 4] ^= 1  # in both views
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"tensor 'views\.0' differs"):
        load(path)


def test_one_state_dict_comes_without_wrappers(tmp_path: Path) -> None:
    model = net()
    state = torch.nn.DataParallel(model).state_dict()
    torch.save({"state_dict": state, "ema": net().state_dict(), "epoch": 3}, tmp_path / "a.pth")
    for select in ("auto", "state_dict"):
        found = load(tmp_path / "a.pth", select=select)
        assert type(found) is dict
        assert found.keys() == model.state_dict().keys()
        assert same_bits(found["0.weight"], model[0].weight)
    assert not same_bits(load(tmp_path / "a.pth", select="ema")["0.weight"], model[0].weight)
    with pytest.raises(LoadMismatch, match="no state dict is called select='x'"):
        load(tmp_path / "a.pth", select="x")


def test_a_whole_model_stays_inert_and_gives_its_state_dict(tmp_path: Path) -> None:
    model = net()
    torch.save(model, tmp_path / "a.pth")
    tree = load(tmp_path / "a.pth")
    assert isinstance(tree, Object)
    assert tree.callee == Global("torch.nn.modules.container", "Sequential")
    weight = tree.state["_modules"]["0"].state["_parameters"]["weight"]
    assert same_bits(weight, model[0].weight)
    assert load(tmp_path / "a.pth", select="auto").keys() == model.state_dict().keys()


def test_a_mapping_of_another_class_keeps_its_class_name(tmp_path: Path) -> None:
    table = defaultdict(list, {"x": [torch.ones(1)]})
    torch.save(table, tmp_path / "a.pth")
    found = load(tmp_path / "a.pth")
    assert isinstance(found, DictObject | Object)
    assert found.class_path == "collections.defaultdict"


def test_a_tree_that_contains_itself_is_built(tmp_path: Path) -> None:
    tree: dict = {"x": torch.ones(1), "list": []}
    tree["list"].append(tree)
    torch.save(tree, tmp_path / "a.pth")
    found = load(tmp_path / "a.pth")
    assert found["list"][0] is found


def test_tensors_are_made_where_they_are_asked_for(tmp_path: Path) -> None:
    save(net(), tmp_path / "a.pth")
    assert all(value.is_meta for value in load(tmp_path / "a.pth", device="meta").values())


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i8", "u2", "c8", "?"])
def test_numpy_arrays_in_a_pickle_are_arrays_again(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = {"rows": array, "columns": np.asfortranarray(array), "one": array[:1, :1].copy()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    torch.save(value, tmp_path / "a.pth")
    for path in (tmp_path / "a.pkl", tmp_path / "a.pth"):
        loaded = load(path)
        for name, expected in value.items():
            assert isinstance(loaded[name], np.ndarray)
            assert loaded[name].dtype == expected.dtype.newbyteorder("=")
            assert loaded[name].strides == expected.strides
            assert np.array_equal(loaded[name], expected)
