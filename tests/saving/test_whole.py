"""save(..., whole=True): a plain state dict to everyone, and a whole model to load_model."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import torchkeep
from torchkeep.contents import Array, Global, Object, TensorEntry
from torchkeep.errors import SaveRefused
from torchkeep.formats import describe
from torchkeep.formats.own.whole import MAX_DATA_NBYTES, Structure, read_structure
from torchkeep.saving import save
from torchkeep.saving.whole import describe_whole


class Net(nn.Module):
    """A model of the user's with what is no data in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.again = self.fc
        self.register_buffer("mask", torch.tensor([True, False]), persistent=False)
        self.act = lambda x: x + 1
        self.lock = threading.Lock()


def structure_of(model: nn.Module, path: Path) -> Structure:
    save(model, path, whole=True, overwrite=True)
    contents = describe(path)
    tensors = contents.tensors
    found = read_structure(contents, {"again.weight": tensors.get("fc.weight"), **tensors})
    assert found is not None
    return found


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_readers_see_a_plain_state_dict(tmp_path: Path, suffix: str):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("beside", torch.ones(3), persistent=False)
    path = tmp_path / f"model{suffix}"
    save(model, path, whole=True)
    found = load_file(path) if suffix == ".safetensors" else torch.load(path)
    assert list(found) == list(model.state_dict()) or set(found) == set(model.state_dict())
    model.load_state_dict(found, strict=True)
    torchkeep.load_into(model, path)


def test_the_report_says_what_is_needed_and_what_is_left_out(tmp_path: Path):
    model = Net()
    model.register_forward_hook(print, with_kwargs=True, always_call=True)
    model.fc.register_forward_pre_hook(lambda *_: None)
    report = save(model, tmp_path / "model.safetensors", whole=True)
    name = f"{Net.__module__}.Net"
    assert report.needs == (name, f"{name}.__init__.<locals>.<lambda>")
    assert report.left_out == (
        "the model: a hook (print in _forward_hooks)",
        "fc: a hook (test_the_report_says_what_is_needed_and_what_is_left_out.<locals>.<lambda> "
        "in _forward_pre_hooks)",
        "lock: a _thread.lock is no data (cannot pickle '_thread.lock' object)",
    )
    assert report.not_saved == ()
    assert f"; to be given when it is loaded: {name}, {name}.__init__" in str(report)
    assert "; not saved, being no data: the model: a hook (print in _forward_hooks)" in str(report)


def test_a_model_of_known_classes_needs_nothing(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    report = save(model, tmp_path / "model.pth", whole=True)
    assert (report.needs, report.left_out) == ((), ())


def test_modules_are_described_as_a_pickle_would_have_them(tmp_path: Path):
    found = structure_of(Net(), tmp_path / "model.safetensors").root
    assert found.class_path == f"{Net.__module__}.Net"
    assert found.state["_modules"]["fc"] is found.state["_modules"]["again"]
    weight = found.state["_modules"]["fc"].state["_parameters"]["weight"]
    assert (weight.is_parameter, weight.requires_grad, weight.shape) == (True, True, (2, 2))
    mask = found.state["_buffers"]["mask"]
    assert (mask.dtype, mask.storage.data) == ("bool", b"\x01\x00")
    assert found.state["_non_persistent_buffers_set"] == {"mask"}
    assert found.state["act"] == Global(Net.__module__, "Net.__init__.<locals>.<lambda>")
    assert "_forward_hooks" not in found.state
    assert found.state["training"] is True


def test_versions_and_the_users_source_text_are_kept_for_the_record(tmp_path: Path):
    found = structure_of(Net(), tmp_path / "model.safetensors")
    assert found.libraries["torch"] == str(torch.__version__)
    text = found.sources[f"{Net.__module__}.Net"]
    assert text.startswith("import threading\nimport torch\nfrom torch import nn\n\n\nclass Net(")
    assert not any(name.startswith("torch.") for name in found.sources)


def test_arrays_and_numbers_of_numpy_are_data(tmp_path: Path):
    model = nn.Sequential(nn.Linear(1, 1))
    model.array = np.arange(4, dtype=np.uint8)[::2]
    model.number = np.int64(3)
    model.objects = np.array([object()])
    report = save(model, tmp_path / "model.pth", whole=True)
    assert report.left_out == ("objects: an array of object is no data",)
    state = structure_of(model, tmp_path / "model.pth").root.state
    assert isinstance(state["array"], Array)
    assert state["array"].storage.data == b"\x00\x02"
    assert state["number"] == 3


def test_a_tensor_in_another_attribute_is_the_parameter_that_it_is(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 1))
    model.weights = [model[0].weight, model[0].weight.detach().clone()]
    found = structure_of(model, tmp_path / "model.pth").root.state
    same, copy = found["weights"]
    assert same is found["_modules"]["0"].state["_parameters"]["weight"]
    assert isinstance(copy, TensorEntry)
    assert copy.storage.data is not None


def test_a_state_dict_that_a_module_changes_is_not_taken_for_its_tensors(tmp_path: Path):
    model = nn.Sequential(nn.Linear(2, 1))

    def double(module: nn.Module, state: dict[str, torch.Tensor], *rest: object) -> None:
        state["0.weight"] = state["0.weight"] * 2

    model._register_state_dict_hook(double)
    again = structure_of(model, tmp_path / "model.pth").root.state["_modules"]["0"]
    assert again.state["_parameters"]["weight"].storage.data is not None
    assert again.state["_parameters"]["bias"].storage.data is None


def test_only_a_module_can_be_whole(tmp_path: Path):
    with pytest.raises(SaveRefused) as caught:
        save({"a": torch.ones(1)}, tmp_path / "model.pth", whole=True)
    problem = "only a module can be saved whole, and this is a builtins.dict"
    assert str(caught.value) == f"{problem}. Leave whole=True out."


def test_a_model_whose_code_is_made_at_run_time_is_refused(tmp_path: Path):
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(1, 1)))
    with pytest.raises(SaveRefused) as caught:
        save(nn.Sequential(traced), tmp_path / "model.pth", whole=True)
    assert str(caught.value) == (
        "0 is a GraphModule, whose code is made at run time. Save the model that it was made from."
    )
    assert not list(tmp_path.iterdir())


def test_tensors_outside_of_the_state_dict_are_bounded(tmp_path: Path):
    model = nn.Linear(1, 1)
    model.table = torch.empty(MAX_DATA_NBYTES + 1, dtype=torch.uint8)
    with pytest.raises(SaveRefused) as caught:
        save(model, tmp_path / "model.pth", whole=True)
    assert "not in its state dict take more than 268,435,456 bytes ('table' is one)" in str(
        caught.value
    )
    assert "Register them as persistent buffers." in str(caught.value)


def test_a_model_that_is_nested_too_deeply_is_refused():
    model = nn.Sequential()
    for _ in range(2000):
        model = nn.Sequential(model)
    with pytest.raises(SaveRefused, match="nested too deeply to be described"):
        describe_whole(model, {})


def test_an_attribute_that_refers_to_its_owner_is_no_trouble(tmp_path: Path):
    model = nn.Sequential(nn.Linear(1, 1))
    vars(model[0])["owner"] = model
    found = structure_of(model, tmp_path / "model.pth").root
    assert isinstance(found, Object)
    assert found.state["_modules"]["0"].state["owner"] is found


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_model_that_is_not_initialised_yet_is_refused(tmp_path: Path, suffix: str):
    path = (tmp_path / "model").with_suffix(suffix)
    with pytest.raises(SaveRefused, match=r"tensor '0\.weight' is not initialised yet\. Run one "):
        save(nn.Sequential(nn.LazyLinear(3)), path, whole=True)
    assert not path.exists()
