"""The state of an optimizer, in its own dtypes.

`Optimizer.load_state_dict` casts every floating-point state tensor to the dtype of its parameter
(`torch/optim/optimizer.py`, `_process_value_according_to_param_policy`; pytorch#43706), so that
fp32 moments of a bf16 parameter lose half of their bits. Here they are put back as they were.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim import Optimizer

from torchkeep.errors import CheckpointProblem


def capture_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's class and state dict, its parameters' shapes, and if it took a step.

    The tensors are the live ones: copy them before the optimizer goes on.
    """
    return {
        "class": type(optimizer).__name__,
        "state_dict": optimizer.state_dict(),
        "shapes": _shapes(optimizer),
        "stepped": bool(getattr(optimizer, "_opt_called", False)),
    }


def check_optimizer(name: str, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Make sure that `restore_optimizer` will find a parameter for every state.

    Raises:
        CheckpointProblem: its class, the parameter groups or the parameters' shapes differ.
    """
    kind = type(optimizer).__name__
    if state["class"] != kind:
        raise CheckpointProblem(
            f"{name}: the checkpoint is of {state['class']}, and this run has {kind}",
            advice="Build the optimizer as it was, or start in another folder.",
        )
    expected, found = state["shapes"], _shapes(optimizer)
    if expected == found:
        return
    sizes = [len(group) for group in expected], [len(group) for group in found]
    if sizes[0] != sizes[1]:
        problem = f"groups of {sizes[0]} parameters, and the optimizer of {sizes[1]}"
    else:
        problem = "parameters of other shapes"
    raise CheckpointProblem(
        f"{name}: the checkpoint has {problem}",
        advice="Build the optimizer from the same parameters in the same order and groups.",
    )


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(item.shape) for item in group["params"]] for group in optimizer.param_groups]


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put `optimizer` into the state that `capture_optimizer` returned.

    State tensors get the device that torch gives them, the dtype that they were saved with, and
    the memory format of their parameter.
    """
    optimizer.load_state_dict(state["state_dict"])
    for index, parameter in _by_index(optimizer, state).items():
        if parameter in optimizer.state:
            saved = state["state_dict"]["state"][index]
            optimizer.state[parameter] = _as_saved(saved, optimizer.state[parameter], parameter)
    if state["stepped"]:
        # Schedulers warn if they are stepped before the optimizer is, and look here for it.
        optimizer._opt_called = True  # type: ignore[attr-defined]


def _by_index(optimizer: Optimizer, state: dict[str, Any]) -> dict[int, torch.Tensor]:
    groups = zip(state["state_dict"]["param_groups"], optimizer.param_groups, strict=True)
    return {
        index: parameter
        for saved, live in groups
        for index, parameter in zip(saved["params"], live["params"], strict=True)
    }


def _as_saved(saved: Any, loaded: Any, parameter: torch.Tensor) -> Any:
    """Return `saved` with its tensors on the devices of those in `loaded`."""
    if isinstance(saved, torch.Tensor):
        if saved.shape != parameter.shape or saved.dim() == 0:
            return saved.to(loaded.device, copy=True)
        target = torch.empty_like(parameter, dtype=saved.dtype, device=loaded.device)
        return target.detach().copy_(saved)
    if isinstance(saved, dict):
        return {key: _as_saved(item, loaded[key], parameter) for key, item in saved.items()}
    if isinstance(saved, list | tuple):
        pairs = zip(saved, loaded, strict=True)
        return type(saved)(_as_saved(item, live, parameter) for item, live in pairs)
    return copy.deepcopy(saved)
