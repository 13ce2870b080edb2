"""Masks of torch.nn.utils.prune become zeros, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import torchkeep
from torchkeep.errors import WrongArgument
from torchkeep.training.pruning import make_masks_permanent, unmasked


def made() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    prune.l1_unstructured(model[0], "weight", 0.25)
    prune.random_unstructured(model[0], "bias", 0.5)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    prune.random_unstructured(model[2], "weight", 0.5)  # on top: a container of masks
    return model


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))


def test_masks_become_permanent_and_the_outputs_stay():
    model, inputs = made(), torch.randn(3, 10)
    before = model(inputs)
    report = make_masks_permanent(model)
    assert torch.equal(model(inputs), before)
    assert [item.name for item in report.tensors] == ["0.bias", "0.weight", "2.weight"] or [
        item.name for item in report.tensors
    ] == ["0.weight", "0.bias", "2.weight"]
    by_name = {item.name: item for item in report.tensors}
    assert (by_name["0.weight"].num_masked, by_name["0.weight"].numel) == (20, 80)
    assert by_name["0.weight"].sparsity == 0.25
    assert by_name["2.weight"].sparsity == 0.75
    assert report.sparsity == (20 + 4 + 12) / (80 + 8 + 16)
    plain().load_state_dict(model.state_dict())
    assert not prune.is_pruned(model)


def test_a_model_without_masks_stays_as_it_is():
    report = make_masks_permanent(plain())
    assert report.tensors == ()
    assert report.sparsity == 0.0


def test_a_state_dict_from_a_file_loses_its_masks(tmp_path):
    model = made()
    torch.save(model.state_dict(), tmp_path / "masked.pth")
    found = unmasked(torchkeep.load(tmp_path / "masked.pth"))
    report = make_masks_permanent(model)
    assert found.report.sparsity == report.sparsity
    assert {item.name for item in found.report.tensors} == {i.name for i in report.tensors}
    again = plain()
    again.load_state_dict(found.state)
    inputs = torch.randn(3, 10)
    assert torch.equal(again(inputs), model(inputs))


def test_what_only_looks_like_a_mask_stays():
    state = {"attn_mask": torch.ones(2), "weight_orig": torch.ones(2), "weight_u": torch.ones(1)}
    found = unmasked(state)
    assert found.state == state
    assert found.report.tensors == ()


def test_masks_that_do_not_fit_are_refused():
    state = {"a.weight_orig": torch.ones(2, 3), "a.weight_mask": torch.ones(3, 2)}
    with pytest.raises(WrongArgument, match=r"the mask of a.weight is \[3, 2\], and the tensor \["):
        unmasked(state)
    state = {"w_orig": torch.ones(2), "w_mask": torch.ones(2), "w": torch.ones(2)}
    with pytest.raises(WrongArgument, match="w is there with a mask and without"):
        unmasked(state)
