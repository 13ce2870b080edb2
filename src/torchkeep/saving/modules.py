"""A module's state as it should be stored: without the names of what it is wrapped in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from torchkeep.contents import child_path
from torchkeep.errors import SaveRefused
from torchkeep.matching.keys import WRAPPERS

_PRIVATE = frozenset(WRAPPERS) - {"module"}


def unwrapped_state(
    module: torch.nn.Module,
) -> tuple[OrderedDict[str, Any], tuple[str, ...]]:
    """Return the module's state dict with the names it would have unwrapped, and what was dropped.

    Wrappers are told by what they are: a `module.` that is the model's own attribute stays.
    `_metadata`, where modules keep the versions of their parts, is renamed alike.

    Raises:
        SaveRefused: two names are the same without their wrappers.
    """
    state = module.state_dict()
    wrapped = wrapped_paths(module)
    stored = _renamed(state, wrapped) if wrapped else OrderedDict(state)
    versions = getattr(state, "_metadata", {})
    bare = {without(path, wrapped): version for path, version in versions.items()}
    stored._metadata = OrderedDict(bare)  # type: ignore[attr-defined]  # as torch's own has it
    return stored, tuple(dict.fromkeys(path.rpartition(".")[2] for path in wrapped))


def _renamed(state: Mapping[str, Any], wrapped: Collection[str]) -> OrderedDict[str, Any]:
    stored: OrderedDict[str, Any] = OrderedDict()
    for key, value in state.items():
        name = without(key, wrapped)
        if name in stored:
            raise SaveRefused(
                f"two tensors are called {name!r} once the wrappers' names are dropped",
                advice="Save the state_dict() itself.",
            )
        stored[name] = value
    return stored


def wrapped_paths(module: torch.nn.Module) -> list[str]:
    """Return the paths of the children that wrappers below and including the module hold."""
    return [
        child_path(path, name)
        for path, part in module.named_modules(remove_duplicate=False)
        for name in _held(part)
    ]


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """Return what is in a wrapper, and in one below it; a module that wraps nothing is itself."""
    while held := _held(module):
        module = module.get_submodule(held[0])
    return module


def _held(module: torch.nn.Module) -> list[str]:
    """Return the names of the children that a module wraps; none if it is no wrapper."""
    if not module._modules:  # most have none, and a save looks at all of them
        return []
    is_parallel = isinstance(module, DataParallel | DistributedDataParallel)
    names = _PRIVATE | {"module"} if is_parallel else _PRIVATE
    return [name for name, child in module._modules.items() if name in names and child is not None]


def without(key: str, wrapped: Collection[str]) -> str:
    """Return the key without the last component of each wrapped path that it begins with."""
    if not wrapped:
        return key
    parts = key.split(".")
    dropped = {path.count(".") for path in wrapped if f"{key}.".startswith(f"{path}.")}
    return ".".join(part for depth, part in enumerate(parts) if depth not in dropped)


def non_persistent_buffers(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the buffers that the module keeps out of its state dict."""
    wrapped = wrapped_paths(module)
    return tuple(
        without(child_path(path, name), wrapped)
        for path, part in module.named_modules(remove_duplicate=False)
        for name in part._buffers
        if name in part._non_persistent_buffers_set
    )
