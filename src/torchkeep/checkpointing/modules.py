"""The state of an `nn.Module`, including what its state dict leaves out.

A state dict has parameters, persistent buffers and `_extra_state`. An exact resume also needs the
non-persistent buffers, the `training` flag of every submodule (a frozen BatchNorm is in eval mode
inside a model in training mode), and `requires_grad` of every parameter.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from torchkeep.errors import CheckpointProblem
from torchkeep.matching.keys import strip_wrappers


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def capture_module(model: nn.Module) -> dict[str, Any]:
    """Return the state of `model` under the names that it has without wrappers.

    The tensors are the live ones, detached: copy them before the model goes on.
    """
    model = unwrap(model)
    state_dict = model.state_dict()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {
        "state_dict": _bare(state_dict),
        "other_buffers": {
            name: item.detach() for name, item in buffers.items() if name not in state_dict
        },
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: item.requires_grad for name, item in model.named_parameters()},
    }


def check_module(name: str, model: nn.Module, state: dict[str, Any]) -> None:
    """Make sure that `restore_module` will find a place for everything.

    Raises:
        CheckpointProblem: names, shapes or dtypes differ.
    """
    live = _bare(unwrap(model).state_dict())
    saved = state["state_dict"]
    problems = [f"{key} is missing" for key in live if key not in saved]
    problems += [f"{key} has no place" for key in saved if key not in live]
    problems += [
        f"{key} was {_shape(saved[key])} and is {_shape(live[key])}"
        for key in live
        if key in saved and _shape(live[key]) != _shape(saved[key])
    ]
    if problems:
        raise CheckpointProblem(
            f"{name}: the checkpoint is of another model: {_first(problems)}",
            advice="Build the model as it was, or use torchkeep.load_into to adapt its parameters.",
        )


def restore_module(model: nn.Module, state: dict[str, Any]) -> None:
    """Put `model` into the state that `capture_module` returned, in place."""
    model = unwrap(model)
    live = model.state_dict()
    bare = strip_wrappers(live)
    named: OrderedDict[str, Any] = OrderedDict((k, state["state_dict"][bare[k]]) for k in live)
    # The versions of the modules' layouts: without them torch would migrate from the oldest.
    named._metadata = getattr(live, "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(named)
    for name, saved in state["other_buffers"].items():
        _set_buffer(model, name, saved)
    for name, module in model.named_modules():
        module.training = state["training"].get(name, module.training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state["requires_grad"].get(name, parameter.requires_grad))


def _set_buffer(model: nn.Module, name: str, saved: torch.Tensor) -> None:
    owner_name, _, buffer_name = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    live = getattr(owner, buffer_name, None)
    if isinstance(live, torch.Tensor) and _shape(live) == _shape(saved):
        live.detach().copy_(saved)
    else:  # a cache that had not grown yet, or was not there
        device = next((item.device for item in model.parameters()), saved.device)
        setattr(owner, buffer_name, saved.to(device, copy=True))


def _bare(named: dict[str, Any]) -> dict[str, Any]:
    bare = strip_wrappers(named)
    return {bare[name]: item for name, item in named.items()}


def _shape(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return "a value"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _first(problems: list[str]) -> str:
    more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    return "; ".join([*problems[:3], *more])
