"""The state of an `nn.Module`, including what its state dict leaves out.

A state dict has parameters, persistent buffers and `_extra_state`. An exact resume also needs the
non-persistent buffers, the `training` flag of every submodule (a frozen BatchNorm is in eval mode
inside a model in training mode), and `requires_grad` of every parameter.

Everything goes by the name that it has without DataParallel, torch.compile and the like, which
are the names that `torchkeep.save` gives too: a run may go on wrapped in something else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from torchkeep.checkpointing.state.gradient_order import gradient_orders
from torchkeep.checkpointing.state.sharded import Sharded, like
from torchkeep.errors import CheckpointProblem
from torchkeep.saving.modules import unwrapped_state, without, wrapped_paths


def capture_module(model: nn.Module) -> dict[str, Any]:
    """Return the state of `model` under the names that it has without wrappers.

    The tensors are the live ones, detached: copy them before the model goes on.

    Raises:
        SaveRefused: two names are the same without their wrappers.
    """
    state_dict, _ = unwrapped_state(model)
    wrapped = wrapped_paths(model)
    buffers = {
        without(name, wrapped): item.detach()
        for name, item in model.named_buffers(remove_duplicate=False)
    }
    orders = gradient_orders(model)
    return {
        "state_dict": dict(state_dict),
        "other_buffers": {name: item for name, item in buffers.items() if name not in state_dict},
        "training": {
            without(path, wrapped): module.training
            for path, module in model.named_modules(remove_duplicate=False)
        },
        "requires_grad": {
            without(name, wrapped): item.requires_grad for name, item in model.named_parameters()
        },
        **({"gradient_orders": orders} if orders else {}),
    }


def check_module(name: str, model: nn.Module, state: dict[str, Any]) -> None:
    """Make sure that `restore_module` will find a place for everything.

    Raises:
        CheckpointProblem: names, shapes or dtypes differ.
    """
    live, _ = unwrapped_state(model)
    saved = state["state_dict"]
    owners = {path for path, _ in _bare_modules(model)}
    problems = [f"{key} is missing" for key in live if key not in saved]
    problems += [f"{key} has no place" for key in saved if key not in live]
    problems += [
        f"{key} has no place" for key in state["other_buffers"] if _owner(key) not in owners
    ]
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
    wrapped = wrapped_paths(model)
    live = model.state_dict()
    named: OrderedDict[str, Any] = OrderedDict(
        (key, like(item, state["state_dict"][without(key, wrapped)])) for key, item in live.items()
    )
    # The versions of the modules' layouts: without them torch would migrate from the oldest.
    named._metadata = getattr(live, "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(named)
    owners = dict(_bare_modules(model))
    device = next((item.device for item in model.parameters()), None)
    for name, saved in state["other_buffers"].items():
        _set_buffer(owners[_owner(name)], name.rpartition(".")[2], saved, device)
    for name, module in _bare_modules(model):
        module.training = state["training"].get(name, module.training)
    for name, parameter in model.named_parameters():
        flag = state["requires_grad"].get(without(name, wrapped), parameter.requires_grad)
        parameter.requires_grad_(flag)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield each parameter under each name that it has without wrappers."""
    wrapped = wrapped_paths(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield without(name, wrapped), parameter


def _bare_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return each module at each of its places; a wrapper stands before what it holds."""
    wrapped = wrapped_paths(model)
    modules = model.named_modules(remove_duplicate=False)
    return [(without(path, wrapped), module) for path, module in modules]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _set_buffer(
    owner: nn.Module, name: str, kept: torch.Tensor | Sharded, device: torch.device | None
) -> None:
    live = getattr(owner, name, None)
    saved: torch.Tensor = like(live, kept)
    if isinstance(live, torch.Tensor) and _shape(live) == _shape(saved):
        live.detach().copy_(saved)
    else:  # a cache that had not grown yet, or was not there
        setattr(owner, name, saved.to(device or saved.device, copy=True))


def _shape(value: object) -> str:
    if not isinstance(value, torch.Tensor | Sharded):
        return "a value"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _first(problems: list[str]) -> str:
    more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    return "; ".join([*problems[:3], *more])
