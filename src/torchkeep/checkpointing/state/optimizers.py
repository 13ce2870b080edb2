"""The state of an optimizer, in its own dtypes, and the parameter groups that it has gained.

`Optimizer.load_state_dict` casts every floating-point state tensor to the dtype of its parameter
(`torch/optim/optimizer.py`, `_process_value_according_to_param_policy`; pytorch#43706), so that
fp32 moments of a bf16 parameter lose half of their bits. Here they are put back as they were.

It also goes by position alone. Here the names that the parameters have in the captured modules are
kept as well: moments are never given to another parameter of the same shape, and an optimizer that
was built with fewer groups, as it was before the program unfroze something, gets the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch.optim import Optimizer

from torchkeep.checkpointing.state.sharded import like
from torchkeep.errors import CheckpointProblem

Parameters = Mapping[str, torch.Tensor]
"""The parameters of all modules that are captured or restored along, by name."""


def capture_optimizer(optimizer: Optimizer, parameters: Parameters) -> dict[str, Any]:
    """Return the optimizer's state dict, and what tells whether it fits another optimizer.

    That is its class, its parameters' names and shapes, and if it took a step. The name of a
    parameter that is in no module is None. The tensors are the live ones: copy them before the
    optimizer goes on.
    """
    names: dict[int, str] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), name)
    groups = [group["params"] for group in optimizer.param_groups]
    return {
        "class": type(optimizer).__name__,
        "state_dict": optimizer.state_dict(),
        "shapes": _shapes(optimizer),
        "names": [[names.get(id(parameter)) for parameter in group] for group in groups],
        "stepped": bool(getattr(optimizer, "_opt_called", False)),
    }


def check_optimizer(
    name: str, optimizer: Optimizer, state: dict[str, Any], parameters: Parameters
) -> None:
    """Make sure that `restore_optimizer` will find a parameter for every state.

    Raises:
        CheckpointProblem: its class, the parameter groups or the parameters differ, other than by
            some that are missing at the end and are known by name.
    """
    kind = type(optimizer).__name__
    if state["class"] != kind:
        raise CheckpointProblem(
            f"{name}: the checkpoint is of {state['class']}, and this run has {kind}",
            advice="Build the optimizer as it was.",
        )
    if _missing(optimizer, state, parameters) is None:
        raise CheckpointProblem(
            f"{name}: the checkpoint has {_difference(optimizer, state)}",
            advice="Build the optimizer from the same parameters in the same order and groups.",
        )


def _difference(optimizer: Optimizer, state: dict[str, Any]) -> str:
    """Return how the groups of an optimizer differ from those that were saved."""
    expected, found = state["shapes"], _shapes(optimizer)
    sizes = [len(group) for group in expected], [len(group) for group in found]
    if sizes[0] != sizes[1]:
        return f"groups of {sizes[0]} parameters, and the optimizer of {sizes[1]}"
    if expected != found:
        return "parameters of other shapes"
    return "the same shapes for other parameters"


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(item.shape) for item in group["params"]] for group in optimizer.param_groups]


def _missing(
    optimizer: Optimizer, state: dict[str, Any], parameters: Parameters
) -> list[list[tuple[str, torch.Tensor]]] | None:
    """Return by group what the optimizer lacks of the parameters that were saved, with names.

    None if it can't become what was saved by adding some at the ends: there is something else, or
    what is missing can't be found by its name.
    """
    live = [group["params"] for group in optimizer.param_groups]
    present = {id(parameter) for group in live for parameter in group}
    missing: list[list[tuple[str, torch.Tensor]]] = []
    for saved, here in zip_longest(_saved_groups(state), live):
        if saved is None or len(here or ()) > len(saved):
            return None
        missing.append([])
        for (name, shape), parameter in zip_longest(saved, here or ()):
            found = parameters.get(name, parameter)
            if found is None or list(found.shape) != shape:
                return None
            if parameter is None and id(found) not in present:
                missing[-1].append((name, found))
            elif parameter is not found:
                return None
    return missing


def _saved_groups(state: dict[str, Any]) -> Iterator[list[tuple[Any, list[int]]]]:
    """Yield the names and shapes of each group; checkpoints had no names at first."""
    shapes = state["shapes"]
    names = state.get("names") or [[None] * len(group) for group in shapes]
    for group in zip(names, shapes, strict=True):
        yield list(zip(*group, strict=True))


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], parameters: Parameters) -> None:
    """Put `optimizer` into the state that `capture_optimizer` returned.

    State tensors get the device that torch gives them, the dtype that they were saved with, and
    the memory format of their parameter. Parameters and groups that it lacks are added.
    """
    if isinstance(vars(optimizer).get("add_param_group"), _AddAgain):
        del optimizer.add_param_group
    _add(optimizer, _missing(optimizer, state, parameters) or [])
    defaults = dict(optimizer.defaults)
    kept = _sharded_as_parameters(optimizer, state)
    optimizer.load_state_dict({**state["state_dict"], "state": kept})
    # PyTorch adds a default here (`Optimizer.__setstate__`), which groups added later would have.
    optimizer.defaults.clear()
    optimizer.defaults.update(defaults)
    for index, parameter in _by_index(optimizer, state).items():
        if parameter in optimizer.state:
            loaded = optimizer.state[parameter]
            optimizer.state[parameter] = _as_saved(kept[index], loaded, parameter)
    if state["stepped"]:
        # Schedulers warn if they are stepped before the optimizer is, and look here for it.
        optimizer._opt_called = True  # type: ignore[attr-defined]


def _add(optimizer: Optimizer, missing: list[list[tuple[str, torch.Tensor]]]) -> None:
    num_groups = len(optimizer.param_groups)
    is_named = any("param_names" in group for group in optimizer.param_groups)
    for group, items in zip(optimizer.param_groups, missing, strict=False):
        group["params"].extend(parameter for _, parameter in items)
    added = missing[num_groups:]
    for items in added:
        optimizer.add_param_group({"params": items if is_named else [item for _, item in items]})
    if added:
        groups = [frozenset(id(parameter) for _, parameter in items) for items in added]
        optimizer.add_param_group = _AddAgain(optimizer, groups)  # type: ignore[method-assign]


@dataclass(slots=True)
class _AddAgain:
    """An optimizer's `add_param_group` after a restore has added groups.

    An epoch that is resumed runs its body again from the start, and where that adds a group, it
    would meet PyTorch's error that the parameters are there. Each added group may be added once
    more; it is there, with the values that it was saved with.
    """

    optimizer: Optimizer
    groups: list[frozenset[int]] = field(default_factory=list)

    def __call__(self, param_group: dict[str, Any]) -> None:
        given = param_group["params"]
        items = [given] if isinstance(given, torch.Tensor) else list(given)
        tensors = [item[1] if isinstance(item, tuple) else item for item in items]
        ids = frozenset(map(id, tensors))
        if ids in self.groups:
            self.groups.remove(ids)
        else:
            kind = type(self.optimizer)
            kind.add_param_group(self.optimizer, {**param_group, "params": items})


def _by_index(optimizer: Optimizer, state: dict[str, Any]) -> dict[int, torch.Tensor]:
    groups = zip(state["state_dict"]["param_groups"], optimizer.param_groups, strict=True)
    return {
        index: parameter
        for saved, live in groups
        for index, parameter in zip(saved["params"], live["params"], strict=True)
    }


def _sharded_as_parameters(optimizer: Optimizer, state: dict[str, Any]) -> dict[Any, Any]:
    """Return the saved state, by parameter; what has a parameter's shape is spread as that is."""
    parameters = _by_index(optimizer, state)
    return {
        index: _like(parameters.get(index), saved)
        for index, saved in state["state_dict"]["state"].items()
    }


def _like(parameter: torch.Tensor | None, saved: Any) -> Any:
    if isinstance(saved, dict):
        return {key: _like(parameter, item) for key, item in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)([_like(parameter, item) for item in saved])
    return like(parameter, saved)


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
