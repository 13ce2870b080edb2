"""A slimmed network is an ordinary file of weights that says how it was slimmed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import torchkeep
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import LoadMismatch, MissingExtra, WrongArgument
from torchkeep.networks import build
from torchkeep.training.pruning import (
    SLIMMED,
    SlimStructure,
    load_slim,
    load_slim_into,
    read_structure,
    restructure,
    save_slim,
    slim,
)

NAME = "torchvision/mobilenet_v3_small"


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def slimmed():
    model = net()
    return model, slim(model, 0.5, inputs=torch.ones(2, 4), runs=1).structure


IN_A_FRESH_PROCESS = """
import sys
sys.modules["torch_pruning"] = None  # as if it were not installed
import torch
from torchkeep.training.pruning import load_slim
torch.manual_seed(3)
model = load_slim(sys.argv[1]).eval()
after = torch.rand(1)
torch.manual_seed(3)
assert torch.equal(after, torch.rand(1)), "loading drew random numbers"
torch.save((model.state_dict(), model(torch.ones(1, 3, 64, 64))), sys.argv[2])
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_fresh_process_without_torch_pruning_loads_it_bit_for_bit(suffix, tmp_path):
    model = build(NAME, num_classes=5)
    report = slim(model, 0.5, inputs=torch.randn(1, 3, 64, 64), runs=1)
    path = tmp_path / f"slim{suffix}"
    save_slim(model, path, report.structure, network=NAME, num_classes=5)
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(path), str(tmp_path / "out")]
    subprocess.run(command, check=True, timeout=300)
    state, outputs = torch.load(tmp_path / "out")
    assert fingerprint(state) == fingerprint(model.state_dict())
    assert torch.equal(outputs, model.eval()(torch.ones(1, 3, 64, 64)))


def test_it_is_a_plain_file_of_weights_to_everyone_else(tmp_path):
    model, structure = slimmed()
    save_slim(model, tmp_path / "a.safetensors", structure, metadata={"version": "2"})
    plain = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert fingerprint(plain) == fingerprint(dict(model.state_dict()))
    assert read_structure(tmp_path / "a.safetensors") == structure
    assert torchkeep.inspect(tmp_path / "a.safetensors").contents.metadata["version"] == "2"
    again = net()
    restructure(again, read_structure(tmp_path / "a.safetensors"))
    again.load_state_dict(plain)


def test_samples_are_kept_and_replayed(tmp_path):
    model, structure = slimmed()
    save_slim(model, tmp_path / "a.safetensors", structure, samples=torch.ones(2, 4))
    report = load_slim_into(net(), tmp_path / "a.safetensors")
    assert report.replayed is not None


def test_a_network_of_ones_own_is_given_its_name_by_the_caller(tmp_path, monkeypatch):
    (tmp_path / "evil_net.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, structure = slimmed()
    for name in ("evil_net:make", "timm/a(pretrained=True)", "", "timm/hf_hub:a/b"):
        save_slim(model, "a.safetensors", structure, network=name, overwrite=True)
        with pytest.raises(WrongArgument) as caught:
            load_slim("a.safetensors")
        assert f"names {name or 'no network'}, and not one of torchvision" in str(caught.value)
        assert "Give network=..., as torchkeep.networks.build takes it" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    again = load_slim("a.safetensors", network="own_net:make")
    assert fingerprint(again.state_dict()) == fingerprint(model.state_dict())


def test_weights_that_are_not_of_the_structure_change_nothing(tmp_path):
    model, structure = slimmed()
    other = SlimStructure({"0": {"out_features": 3}, "2": {"in_features": 3}})
    assert other != structure
    save_slim(model, tmp_path / "a.safetensors", other)
    target = net()
    before = fingerprint(target.state_dict())
    with pytest.raises(LoadMismatch) as caught:
        load_slim_into(target, tmp_path / "a.safetensors")
    assert "weights are not those of the slimmed network that it describes" in str(caught.value)
    assert caught.value.mismatched == ("0.weight", "0.bias", "2.weight")
    assert fingerprint(target.state_dict()) == before


def test_a_file_that_claims_a_huge_network_makes_none(tmp_path):
    for num_classes, kind, text in (
        (1 << 17, LoadMismatch, "weights are not those of the slimmed network"),
        (1 << 24, WrongArgument, "num_classes has the width 16777216, and not 1 to 131,072"),
    ):
        structure = SlimStructure({}, {}, "torchvision/resnet18", num_classes=num_classes)
        save_slim(net(), tmp_path / "a.safetensors", structure, overwrite=True)
        with pytest.raises(kind, match=text):
            load_slim(tmp_path / "a.safetensors")


def test_a_hostile_structure_is_refused(tmp_path):
    text = '{"version": 1, "layers": {"0": {"out_features": -4}}}'
    torchkeep.save(net(), tmp_path / "a.safetensors", metadata={SLIMMED: text})
    target = net()
    before = fingerprint(target.state_dict())
    with pytest.raises(WrongArgument, match="0 has the width -4, and not 1 to"):
        load_slim_into(target, tmp_path / "a.safetensors")
    assert fingerprint(target.state_dict()) == before


def test_a_file_that_was_not_slimmed_says_so(tmp_path):
    torchkeep.save(net(), tmp_path / "a.safetensors")
    with pytest.raises(WrongArgument, match="does not say that its network was slimmed"):
        read_structure(tmp_path / "a.safetensors")


def test_the_key_of_the_structure_is_taken(tmp_path):
    model, structure = slimmed()
    with pytest.raises(WrongArgument, match="the metadata 'slimmed' is the structure's"):
        save_slim(model, tmp_path / "a.safetensors", structure, metadata={SLIMMED: "mine"})


def test_without_torch_pruning_only_slimming_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtra, match="slimming a network needs torch-pruning, not installed"):
        slim(net(), 0.5, inputs=torch.ones(2, 4))
