"""Models that come from a CUDA device, or go to one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep
from torchkeep.tensors import same_bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SUFFIXES = ["safetensors", "pth"]


def network(device="cuda", dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(1024, 1024, device=device, dtype=dtype) for _ in range(6)]
    return nn.Sequential(*layers, nn.BatchNorm1d(1024, device=device, dtype=dtype))


def assert_same(model: nn.Module, other: nn.Module, device: str = "cuda") -> None:
    state = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == device
        assert same_bits(tensor, state[name]), name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("source", ["cuda", "cpu"])
@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_from_any_device_to_any(tmp_path, suffix, source, target):
    path = tmp_path / f"model.{suffix}"
    torchkeep.save(network(source), path)
    model = network(target)
    nn.init.zeros_(model[0].weight)
    assert torchkeep.load_into(model, path).coverage == 1
    assert_same(model, network(source), target)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_model_without_memory_is_made_on_the_device(tmp_path, suffix, mmap):
    path = tmp_path / f"model.{suffix}"
    torchkeep.save(network(), path)
    model = network("meta")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torchkeep.load_into(model, path, assign=True, device="cuda", mmap=mmap)
    peak = torch.cuda.max_memory_allocated() - before
    nbytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert peak <= nbytes * 1.05 + 1024 * 1024 * 4  # the largest tensor is compared on the device
    assert_same(model, network())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_state_dict_is_loaded_onto_the_device(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    model = network(dtype=torch.bfloat16)
    torchkeep.save(model, path)
    loaded = torchkeep.load(path, device="cuda")
    assert all(same_bits(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert {tensor.device.type for tensor in loaded.values()} == {"cuda"}


def test_a_file_from_a_device_that_is_not_here_is_loaded_on_the_cpu(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(network().state_dict(), path)
    assert {tensor.device.type for tensor in torchkeep.load(path).values()} == {"cpu"}
    assert torchkeep.inspect(path).contents is not None


def test_outputs_are_replayed_on_the_device(tmp_path):
    path = tmp_path / "model.safetensors"
    model = network().eval()
    torchkeep.save(model, path, samples=torch.randn(4, 1024, device="cuda"))
    again = network()
    torchkeep.load_into(again, path)
    assert torchkeep.replay(again, path).is_proven
