"""A module's state goes by the names that it has without wrappers, which `save` gives too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from torch import nn

import torchkeep
from torchkeep.checkpointing import Checkpointer
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.checkpointing.state.modules import capture_module, check_module, restore_module
from torchkeep.errors import CheckpointProblem

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda model: model,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


class Holder(nn.Module):
    """A model with a child called `module`, as a wrapper would call it."""

    def __init__(self, *, wrap: Callable[[nn.Module], nn.Module] = WRAPPERS["nothing"]) -> None:
        super().__init__()
        self.module = nn.Sequential(wrap(nn.Linear(2, 2)), nn.BatchNorm1d(2))
        self.module.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def bring(saved: nn.Module, resumed: nn.Module) -> None:
    """Bring what a checkpoint of `saved` would have into `resumed`."""
    state = copy.deepcopy(capture_module(saved))
    check_module("model", resumed, state)
    restore_module(resumed, state)


def holder(seed: int) -> Holder:
    torch.manual_seed(seed)
    model = Holder()
    model.module.cache.fill_(seed)
    if seed:
        model.module[0].bias.requires_grad_(False)
        model.module[1].eval()
    return model


def facts_of(model: Holder) -> str:
    """Return a digest of everything about the bare model that a resume must bring back."""
    modules = {name: part.training for name, part in model.named_modules()}
    gradients = {name: item.requires_grad for name, item in model.named_parameters()}
    return fingerprint([model.state_dict(), model.module.cache, modules, gradients])


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_checkpoint_names_the_tensors_as_save_does(tmp_path, wrap):
    model = wrap(holder(1))
    torchkeep.save(model, tmp_path / "saved.safetensors")
    with Checkpointer(tmp_path / "run", model=model, allow_inexact=True) as ckpt:
        ckpt.save()
    (kept,) = (tmp_path / "run").glob("step-*/model.safetensors")
    names = set(safetensors.torch.load_file(kept))
    assert "module.0.weight" in names
    assert names == set(safetensors.torch.load_file(tmp_path / "saved.safetensors"))


@pytest.mark.parametrize("after", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("before", WRAPPERS.values(), ids=WRAPPERS)
def test_a_run_goes_on_in_any_other_wrapper(before, after):
    saved, resumed = holder(3), holder(0)
    assert facts_of(resumed) != facts_of(saved)
    bring(before(saved), after(resumed))
    assert facts_of(resumed) == facts_of(saved)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_every_name_is_bare(wrap):
    bare, wrapped = capture_module(holder(1)), capture_module(wrap(holder(1)))
    assert fingerprint(wrapped) == fingerprint(bare)


def test_a_wrapper_inside_of_the_model_leaves_no_name():
    compiled = Holder(wrap=WRAPPERS["torch.compile"])
    assert "module.0.weight" in capture_module(compiled)["state_dict"]
    plain = Holder()
    bring(compiled, plain)
    assert torch.equal(plain.module[0].weight, compiled.module[0].weight)


def test_a_cache_that_is_not_there_yet_is_put_where_the_wrapped_model_has_it():
    saved, resumed = holder(1), holder(0)
    resumed.module.cache = None
    bring(saved, nn.DataParallel(resumed))
    assert torch.equal(resumed.module.cache.cpu(), torch.ones(3))  # on a GPU, if there is one


def test_a_buffer_of_a_module_that_is_shared_has_all_its_places():
    def pair() -> nn.Module:
        part = nn.Linear(2, 2)
        part.register_buffer("cache", torch.rand(2), persistent=False)
        return nn.ModuleDict({"a": part, "b": part})

    saved, resumed = pair(), pair()
    bring(saved, resumed)
    assert torch.equal(resumed["b"].cache, saved["a"].cache)


def test_a_buffer_whose_module_is_gone_is_refused_and_nothing_is_changed():
    saved = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    saved[1].register_buffer("cache", torch.ones(2), persistent=False)
    resumed = nn.Sequential(nn.Linear(2, 2))
    before = fingerprint(resumed.state_dict())
    with pytest.raises(CheckpointProblem, match=r"another model: 1\.cache has no place"):
        bring(saved, resumed)
    assert fingerprint(resumed.state_dict()) == before
