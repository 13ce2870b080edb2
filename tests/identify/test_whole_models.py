"""The whole models in a file, found by their paths, without what they were wrapped in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep
from torchkeep.errors import DamagedFile, LoadMismatch
from torchkeep.identify.whole_models import whole_models
from torchkeep.saving import save


def test_each_model_of_a_checkpoint_is_found_and_a_loss_is_none(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    content = {"nets": [nn.Linear(1, 2), nn.Linear(1, 3)], "loss": nn.MSELoss(), "epoch": 1}
    torch.save(content, path)
    found = whole_models(torchkeep.inspect(path))
    assert list(found) == ["nets.0", "nets.1"]
    assert found["nets.1"].root.state["out_features"] == 3


def test_a_model_in_two_places_is_found_in_both(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    model = nn.Linear(1, 2)
    torch.save({"model": model, "again": model}, path)
    found = whole_models(torchkeep.inspect(path))
    assert found["model"].root is found["again"].root


def test_a_wrapper_is_not_part_of_the_model(tmp_path: Path):
    path = tmp_path / "model.pt"
    torch.save(nn.DataParallel(nn.DataParallel(nn.Linear(1, 2))), path)
    inspection = torchkeep.inspect(path)
    (model,) = whole_models(inspection).values()
    assert model.root.class_path == "torch.nn.modules.linear.Linear"
    assert list(model.tree(inspection.contents).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_our_own_whole_file_has_one(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    model = nn.Sequential(nn.Linear(1, 2))
    model.again = model[0]
    save(model, path, whole=True)
    inspection = torchkeep.inspect(path)
    (found,) = whole_models(inspection).values()
    names = ["0.weight", "0.bias", "again.weight", "again.bias"]
    assert list(found.tree(inspection.contents).state_dict()) == names


def test_a_file_without_one_says_what_it_is(tmp_path: Path):
    path = tmp_path / "state.pt"
    torch.save(nn.Linear(1, 2).state_dict(), path)
    inspection = torchkeep.inspect(path)
    with pytest.raises(LoadMismatch) as caught:
        whole_models(inspection)
    summary = inspection.summary.removesuffix(".")
    assert f"there is no whole model in this file ({summary})" in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_our_own_whole_file_is_inspected_as_a_whole_model(tmp_path: Path, suffix: str):
    path = tmp_path / f"model{suffix}"
    save(nn.Sequential(nn.Linear(1, 2), nn.ReLU()), path, whole=True)
    found = torchkeep.inspect(path)
    assert found.role == "module"
    assert found.summary.startswith("Whole model: torch.nn.modules.container.Sequential, 4 param")
    ((name, node),) = found.modules
    assert [child.class_path for child in node.children] == [
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.activation.ReLU",
    ]
    assert (name, found.safety.verdict) == ("", "data-only")
    assert [item.num_parameters for item in found.state_dicts] == [4]


def test_a_broken_structure_is_told_of_and_the_parameters_are_there(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save(nn.Linear(1, 2), path, whole=True)
    path.write_bytes(path.read_bytes().replace(b'{\\"version\\":1', b'{\\"version\\":7'))
    found = torchkeep.inspect(path)
    assert found.role == "state_dict"
    assert "the structure of its model can't be read (its version is 7, and 1 is known)" in [
        item.text for item in found.contents.findings
    ]
    torchkeep.load_into(nn.Linear(1, 2), path)
    with pytest.raises(DamagedFile, match="its version is 7"):
        torchkeep.load_model(path)
