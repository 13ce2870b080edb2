"""What a training run needs in order to go on, as a `State`.

`capture` and `restore` are inverse of each other, bit for bit. An object is captured by what it
is, never by the name that it is given; `kinds.KINDS` is the list. Whatever else is met is left
out, and named in the state's `inexact`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from torchkeep.checkpointing.state.encoding import State, encode, is_plain
from torchkeep.checkpointing.state.kinds import (
    ITEMS,
    VALUE,
    Kind,
    kind_of,
    on_devices_of,
    paired,
)
from torchkeep.checkpointing.state.modules import named_parameters
from torchkeep.checkpointing.state.optimizers import Parameters
from torchkeep.checkpointing.state.rng import capture_rng, restore_rng
from torchkeep.checkpointing.state.sharded import like
from torchkeep.checkpointing.state.walking import all_parameters, entries, placed
from torchkeep.errors import CheckpointProblem, SaveRefused


def capture(objects: Mapping[str, object], *, rng: bool = True, copy: bool = True) -> State:
    """Return the state of `objects` and of the global random number generators.

        state = capture({"model": model, "optimizer": optimizer, "extra": {"best": best}})

    Args:
        objects: what to capture, by any name; None is skipped.
        rng: capture the global generators of Python, NumPy, torch and CUDA as well.
        copy: copy every tensor. Without it the state holds the live tensors, and is good only
            until the next step.

    Returns:
        `{"objects": {name: ...}, "rng": ..., "inexact": [reason, ...]}`. A reason names something
        that could not be captured, so that a resume may not be exact.
    """
    inexact: list[str] = []
    nodes: dict[str, Any] = {}
    parameters = _named_parameters(objects)
    for name, item in objects.items():
        if item is not None and kind_of(item) is VALUE and type(item) not in (dict, list):
            inexact.append(f"{name} is a plain value, which can't be put back; pass it in a dict")
        elif item is not None:
            _capture_into(nodes, name, item, name, parameters, inexact)
    state: State = {"objects": nodes, "inexact": inexact}
    if rng:
        state["rng"] = capture_rng()
    return _copied(state) if copy else state


def restore(state: State, objects: Mapping[str, object], *, rng: bool = True) -> None:
    """Put `objects`, and the random number generators, into the state that was captured.

    Everything is checked before anything is changed. What the state has and the call does not
    name is left alone.

    Args:
        state: what `capture` returned.
        objects: what to restore, under the names that it was captured by; None is skipped.
        rng: restore the global generators too, if the state has them.

    Raises:
        CheckpointProblem: an object is not in the state, or is another one: other parameters,
            other shapes, another kind.
    """
    given = {name: item for name, item in objects.items() if item is not None}
    parameters = _named_parameters(given)
    for name, item in given.items():
        _check(item, state["objects"].get(name), name, parameters)
    for name, item in given.items():
        _restore(given, name, item, state["objects"][name], parameters)
    if rng and "rng" in state:
        restore_rng(state["rng"])


def capture_gradients(objects: Mapping[str, Any], inexact: list[str]) -> dict[str, Any]:
    """Return the gradients of all modules by object, to go on with an accumulation.

    If they can't be kept, `inexact` gets the reason.
    """
    gradients = {name: [p.grad for p in all_parameters(item)] for name, item in objects.items()}
    if any(item is not None and item.is_sparse for items in gradients.values() for item in items):
        inexact.append("the sparse gradients of the batches after the last step() can't be kept")
        return {}
    return gradients


def restore_gradients(objects: Mapping[str, Any], gradients: Mapping[str, Any]) -> None:
    """Put back what `capture_gradients` returned."""
    for name, items in gradients.items():
        for parameter, item in zip(all_parameters(objects.get(name)), items, strict=False):
            kept = like(parameter, item)
            parameter.grad = None if kept is None else kept.to(parameter.device, copy=True)


def _updated(live: Any, saved: Any) -> Any:
    """Return `saved`; dicts and lists that `live` has in its place are kept, and filled with it."""
    if type(live) is type(saved) is dict:
        filled = {key: _updated(live.get(key), item) for key, item in saved.items()}
        live.clear()
        live.update(filled)
        return live
    if type(live) is type(saved) is list:
        live[:] = [_updated(*pair) for pair in paired(live, saved)]
        return live
    return on_devices_of(live, saved)


def _named_parameters(objects: Mapping[str, Any]) -> Parameters:
    """Return the parameters of all modules, by their object's place and their own names."""
    return {
        f"{place}.{name}": parameter
        for place, item in placed(dict(objects))
        if isinstance(item, nn.Module)
        for name, parameter in named_parameters(item)
    }


def _capture_into(
    nodes: dict[Any, Any],
    key: object,
    item: Any,
    place: str,
    parameters: Parameters,
    inexact: list[str],
) -> None:
    """Put the node of `item` under `key`, or the reason why there is none into `inexact`."""
    kind = kind_of(item)
    try:
        if kind is ITEMS:
            inner: dict[Any, Any] = {}
            for name, value in entries(item):
                _capture_into(inner, name, value, f"{place}.{name}", parameters, inexact)
            nodes[key] = {"kind": ITEMS, "items": inner}
        elif isinstance(kind, Kind):
            state = _keepable(kind.capture(item, parameters), place, inexact)
            nodes[key] = {"kind": kind.name, "state": state}
        else:
            nodes[key] = {"kind": VALUE, "state": _keepable(item, place, inexact)}
    except SaveRefused as refused:
        inexact.append(refused.problem)


def _keepable(value: Any, place: str, inexact: list[str]) -> Any:
    """Return `value` without the dict entries that can't be kept; they go into `inexact`."""
    if is_plain(value):
        return value
    if type(value) not in (dict, OrderedDict):
        encode(value, place)
        return value
    kept = type(value)()
    for key, item in value.items():
        try:
            kept[key] = _keepable(item, f"{place}.{key}", inexact)
        except SaveRefused as refused:
            inexact.append(refused.problem)
    return kept


def _check(item: Any, node: dict[str, Any] | None, place: str, parameters: Parameters) -> None:
    kind = kind_of(item)
    if node is None:
        raise CheckpointProblem(
            f"the checkpoint has no {place}",
            advice="Pass the objects that were captured, under the same names.",
        )
    if kind is ITEMS and node["kind"] == ITEMS:
        for key, value in entries(item):
            if kind_of(value) is not VALUE:
                _check(value, node["items"].get(key), f"{place}.{key}", parameters)
    elif isinstance(kind, Kind) and node["kind"] == kind.name:
        kind.check(place, item, node["state"], parameters)
    elif kind is not VALUE or node["kind"] != VALUE:
        name = kind.name if isinstance(kind, Kind) else kind
        raise CheckpointProblem(f"{place}: the checkpoint has {node['kind']}, and this is {name}")


def _restore(owner: Any, key: Any, item: Any, node: dict[str, Any], parameters: Parameters) -> None:
    """Restore `item`, which `owner` holds under `key`."""
    kind = kind_of(item)
    if isinstance(kind, Kind):
        kind.restore(item, node["state"], parameters)
    elif kind is ITEMS:
        for name, value in entries(item):
            if name in node["items"]:
                _restore(item, name, value, node["items"][name], parameters)
        for name, inner in node["items"].items():
            if isinstance(item, dict) and name not in item and inner["kind"] == VALUE:
                item[name] = _copied(inner["state"])
    else:
        owner[key] = _updated(item, node["state"])


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value)({key: _copied(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)([_copied(item) for item in value])
    return deepcopy(value)
