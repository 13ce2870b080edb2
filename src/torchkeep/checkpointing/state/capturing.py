"""What a training run needs in order to go on, as a `State`.

`capture` and `restore` are inverse of each other, bit for bit. An object is captured by what it
is, never by the name that it is given; `KINDS` is the list. Whatever else is met is left out, and
named in the state's `inexact`.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torchkeep.checkpointing.state.encoding import State, encode, is_plain
from torchkeep.checkpointing.state.modules import (
    capture_module,
    check_module,
    named_parameters,
    restore_module,
)
from torchkeep.checkpointing.state.optimizers import (
    Parameters,
    capture_optimizer,
    check_optimizer,
    restore_optimizer,
)
from torchkeep.checkpointing.state.rng import (
    capture_rng,
    from_numpy_state,
    numpy_state,
    python_state,
    restore_rng,
    set_python_state,
)
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
        if item is not None and _kind_of(item) is VALUE and type(item) not in (dict, list):
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
    gradients = {name: [p.grad for p in _parameters(item)] for name, item in objects.items()}
    if any(item is not None and item.is_sparse for items in gradients.values() for item in items):
        inexact.append("the sparse gradients of the batches after the last step() can't be kept")
        return {}
    return gradients


def restore_gradients(objects: Mapping[str, Any], gradients: Mapping[str, Any]) -> None:
    """Put back what `capture_gradients` returned."""
    for name, items in gradients.items():
        for parameter, item in zip(_parameters(objects.get(name)), items, strict=False):
            parameter.grad = None if item is None else item.to(parameter.device, copy=True)


def hookable_optimizers(objects: Mapping[str, Any]) -> list[Optimizer]:
    """Return the optimizers among the objects, or those that they wrap, that tell before a step.

    None if one of them can't: then nobody says when parameters are about to change.
    """
    found = [item for item in _leaves(dict(objects)) if isinstance(item, Optimizer)]
    telling = [_hookable(item) for item in found]
    return [item for item in telling if item is not None] if None not in telling else []


def _hookable(optimizer: Optimizer) -> Optimizer | None:
    """Return the optimizer, or what a wrapper such as accelerate's holds; None if neither tells."""
    # A wrapper that does not call Optimizer.__init__ has no hooks, and its step calls none.
    while "_optimizer_step_pre_hooks" not in vars(optimizer):
        held = vars(optimizer).get("optimizer")
        if not isinstance(held, Optimizer):
            return None
        optimizer = held
    return optimizer


def steady_addresses(objects: Mapping[str, Any]) -> set[int]:
    """Return where the tensors are that only a step of an optimizer changes.

    They are the parameters of all modules, and the optimizers' own tensors; none without an
    optimizer, since nobody would say then when a step comes.
    """
    optimizers = hookable_optimizers(objects)
    tensors: list[Any] = [
        value for item in optimizers for state in item.state.values() for value in state.values()
    ]
    tensors += _parameters(dict(objects)) if optimizers else ()
    return {
        item.data_ptr()
        for item in tensors
        if isinstance(item, torch.Tensor)
        and item.layout == torch.strided  # others have no address
        and not item._post_accumulate_grad_hooks  # these may change it with each gradient
    }


def _parameters(item: Any) -> Iterator[nn.Parameter]:
    for leaf in _leaves(item):
        if isinstance(leaf, nn.Module):
            yield from leaf.parameters()


def _named_parameters(objects: Mapping[str, Any]) -> Parameters:
    """Return the parameters of all modules, by their object's place and their own names."""
    return {
        f"{place}.{name}": parameter
        for place, item in _placed(dict(objects), "")
        if isinstance(item, nn.Module)
        for name, parameter in named_parameters(item)
    }


def _placed(item: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield what `_leaves` yields, with its place."""
    if type(item) in (dict, list):
        for key, value in _entries(item):
            yield from _placed(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, item


def _leaves(item: Any) -> Iterator[Any]:
    """Yield what is in dicts and lists of an object, or the object itself."""
    for _, leaf in _placed(item, ""):
        yield leaf


# --- The kinds of objects ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object that can be captured.

    Attributes:
        name: what the checkpoint calls it.
        matches: whether an object is of this kind.
        capture: the object's state, a dict of tensors and plain values.
        restore: puts the object into such a state, in place.
        check: raises `CheckpointProblem` if `restore` could not; gets the object's name first.

    Each of them also gets the parameters of all modules, for who refers to them.
    """

    name: str
    matches: Callable[[Any], bool]
    capture: Callable[[Any, Parameters], dict[str, Any]]
    restore: Callable[[Any, dict[str, Any], Parameters], None]
    check: Callable[[str, Any, dict[str, Any], Parameters], None] = lambda *_: None


def is_stateful(item: object) -> bool:
    """Whether an object gives its state, and takes it back, as PyTorch's own do."""
    return hasattr(item, "state_dict") and hasattr(item, "load_state_dict")


def _is_numpy_generator(item: object) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    kinds = numpy.random
    return isinstance(item, kinds.Generator | kinds.RandomState | kinds.BitGenerator)


def _numpy_bits(generator: Any) -> Any:
    """Return the bit generator of one, which may be that itself."""
    held = getattr(generator, "bit_generator", None) or getattr(generator, "_bit_generator", None)
    return generator if held is None else held


def _restore_numpy(generator: Any, state: dict[str, Any], _: Parameters) -> None:
    _numpy_bits(generator).state = from_numpy_state(state["state"])


def _restore_stateful(item: Any, state: dict[str, Any], _: Parameters) -> None:
    item.load_state_dict(_on_devices_of(item.state_dict(), state["state"]))


def _on_devices_of(live: Any, saved: Any) -> Any:
    """Return a copy of `saved` with its tensors where those of `live` are."""
    if isinstance(saved, torch.Tensor):
        device = live.device if isinstance(live, torch.Tensor) else saved.device
        return saved.to(device, copy=True)
    if isinstance(saved, dict):
        table = live if isinstance(live, dict) else {}
        return type(saved)({k: _on_devices_of(table.get(k), item) for k, item in saved.items()})
    if isinstance(saved, list | tuple):
        row = live if isinstance(live, list | tuple) else ()
        return type(saved)([_on_devices_of(*pair) for pair in _paired(row, saved)])
    return deepcopy(saved)


def _updated(live: Any, saved: Any) -> Any:
    """Return `saved`; dicts and lists that `live` has in its place are kept, and filled with it."""
    if type(live) is type(saved) is dict:
        filled = {key: _updated(live.get(key), item) for key, item in saved.items()}
        live.clear()
        live.update(filled)
        return live
    if type(live) is type(saved) is list:
        live[:] = [_updated(*pair) for pair in _paired(live, saved)]
        return live
    return _on_devices_of(live, saved)


def _paired(live: Sequence[Any], saved: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """Return each item of `saved` with the one at its position in `live`, or None."""
    return zip((*live, *[None] * len(saved)), saved, strict=False)


KINDS: tuple[Kind, ...] = (
    Kind(
        "module",
        lambda item: isinstance(item, nn.Module),
        lambda item, _: capture_module(item),
        lambda item, state, _: restore_module(item, state),
        lambda name, item, state, _: check_module(name, item, state),
    ),
    Kind(
        "optimizer",
        lambda item: isinstance(item, Optimizer),
        capture_optimizer,
        restore_optimizer,
        check_optimizer,
    ),
    Kind(
        "torch.Generator",
        lambda item: isinstance(item, torch.Generator),
        lambda item, _: {"state": item.get_state()},
        lambda item, state, _: item.set_state(state["state"]),
    ),
    Kind(
        "random.Random",
        # The system's generator has no state to keep.
        lambda item: isinstance(item, random.Random) and not isinstance(item, random.SystemRandom),
        lambda item, _: {"state": python_state(item)},
        lambda item, state, _: set_python_state(item, state["state"]),
    ),
    Kind(
        "numpy.random",
        _is_numpy_generator,
        lambda item, _: {"state": numpy_state(_numpy_bits(item).state)},
        _restore_numpy,
    ),
    Kind(
        "stateful",
        is_stateful,
        lambda item, _: {"state": item.state_dict()},
        _restore_stateful,
    ),
)
"""What can be captured, the first match counts. Dicts and lists of these are walked into."""

VALUE = "value"
ITEMS = "items"


def is_plain_value(item: object) -> bool:
    """Whether an object has no state of its own that could be put back, nor has what is in it."""
    return _kind_of(item) is VALUE


def _kind_of(item: object) -> Kind | str:
    for kind in KINDS:
        if kind.matches(item):
            return kind
    if type(item) in (dict, list) and any(_kind_of(x) is not VALUE for _, x in _entries(item)):
        return ITEMS
    return VALUE


def _entries(item: Any) -> list[tuple[Any, Any]]:
    return list(item.items() if isinstance(item, dict) else enumerate(item))


def _capture_into(
    nodes: dict[Any, Any],
    key: object,
    item: Any,
    place: str,
    parameters: Parameters,
    inexact: list[str],
) -> None:
    """Put the node of `item` under `key`, or the reason why there is none into `inexact`."""
    kind = _kind_of(item)
    try:
        if kind is ITEMS:
            inner: dict[Any, Any] = {}
            for name, value in _entries(item):
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
    kind = _kind_of(item)
    if node is None:
        raise CheckpointProblem(
            f"the checkpoint has no {place}",
            advice="Pass the objects that were captured, under the same names.",
        )
    if kind is ITEMS and node["kind"] == ITEMS:
        for key, value in _entries(item):
            if _kind_of(value) is not VALUE:
                _check(value, node["items"].get(key), f"{place}.{key}", parameters)
    elif isinstance(kind, Kind) and node["kind"] == kind.name:
        kind.check(place, item, node["state"], parameters)
    elif kind is not VALUE or node["kind"] != VALUE:
        name = kind.name if isinstance(kind, Kind) else kind
        raise CheckpointProblem(f"{place}: the checkpoint has {node['kind']}, and this is {name}")


def _restore(owner: Any, key: Any, item: Any, node: dict[str, Any], parameters: Parameters) -> None:
    """Restore `item`, which `owner` holds under `key`."""
    kind = _kind_of(item)
    if isinstance(kind, Kind):
        kind.restore(item, node["state"], parameters)
    elif kind is ITEMS:
        for name, value in _entries(item):
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
