"""The kinds of objects that have a state to keep, and how each gives and takes it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torchkeep.checkpointing.state.modules import capture_module, check_module, restore_module
from torchkeep.checkpointing.state.optimizers import (
    Parameters,
    capture_optimizer,
    check_optimizer,
    restore_optimizer,
)
from torchkeep.checkpointing.state.rng import (
    from_numpy_state,
    numpy_state,
    python_state,
    set_python_state,
)
from torchkeep.checkpointing.state.sharded import Sharded, like
from torchkeep.checkpointing.state.walking import entries


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
    item.load_state_dict(on_devices_of(item.state_dict(), state["state"]))


def on_devices_of(live: Any, saved: Any) -> Any:
    """Return a copy of `saved` with its tensors where those of `live` are."""
    if isinstance(saved, torch.Tensor | Sharded):
        tensor: torch.Tensor = like(live, saved)
        device = live.device if isinstance(live, torch.Tensor) else tensor.device
        return tensor.to(device, copy=True)
    if isinstance(saved, dict):
        table = live if isinstance(live, dict) else {}
        return type(saved)({k: on_devices_of(table.get(k), item) for k, item in saved.items()})
    if isinstance(saved, list | tuple):
        row = live if isinstance(live, list | tuple) else ()
        return type(saved)([on_devices_of(*pair) for pair in paired(row, saved)])
    return deepcopy(saved)


def paired(live: Sequence[Any], saved: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
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

ITEMS = "items"
"""A dict or list that has one of these kinds in it."""

VALUE = "value"
"""Everything else: data, or nothing that can be kept."""


def is_plain_value(item: object) -> bool:
    """Whether an object has no state of its own that could be put back, nor has what is in it."""
    return kind_of(item) is VALUE


def kind_of(item: object) -> Kind | str:
    """Return the first kind that an object is of; `ITEMS` or `VALUE` if it is of none itself."""
    for kind in KINDS:
        if kind.matches(item):
            return kind
    if type(item) in (dict, list) and any(kind_of(x) is not VALUE for _, x in entries(item)):
        return ITEMS
    return VALUE
