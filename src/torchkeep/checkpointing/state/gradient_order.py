"""The order in which gradients come, by which DDP puts them into buckets.

DDP adds gradients up bucket by bucket, and each rank begins with another part of a bucket; so with
three ranks or more it depends on a gradient's place in which order its parts are added, and with it
the last bit. After the first backward pass DDP lays its buckets out anew, in the order in which the
gradients came. A run that is resumed has to have these buckets in its first step already. So the
order is noted, and a resumed DDP is shown it: by a backward pass of zeros in that order, from which
it learns what it would have learnt from the first step.

Source: torch/nn/parallel/distributed.py; torch/csrc/distributed/c10d/reducer.cpp
(`should_rebuild_buckets`, `push_rebuilt_params`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchkeep.saving.modules import without, wrapped_paths

_LEAST_RANKS = 3
"""The sum of two is the same in either order."""

_ORDERS: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""The names of the parameters whose gradients have come, in their order, by DDP."""


def _learns(module: object) -> TypeGuard[DistributedDataParallel]:
    """Whether a module lays out buckets anew after the first backward pass, and can be shown it."""
    if not isinstance(module, DistributedDataParallel):
        return False
    # One with a static graph counts how often each parameter comes: zeros would be counted, too.
    is_fixed = module.find_unused_parameters or module.static_graph
    return _adds_up(module) and not is_fixed


def _adds_up(module: DistributedDataParallel) -> bool:
    """Whether a sum over its ranks depends on their order."""
    return torch.distributed.get_world_size(module.process_group) >= _LEAST_RANKS


def _learning(module: object) -> Iterator[tuple[str, DistributedDataParallel]]:
    """Yield what learns in a module, itself or within it, by its path without wrappers."""
    if isinstance(module, nn.Module):
        wrapped = wrapped_paths(module)
        for path, item in module.named_modules():
            if _learns(item):
                yield without(path, wrapped), item


def fixed_orders(objects: Iterable[object]) -> list[str]:
    """Return why gradients may be added up in another order after a resume."""
    modules = (item for item in objects if isinstance(item, nn.Module))
    is_fixed = any(
        isinstance(item, DistributedDataParallel) and item.static_graph and _adds_up(item)
        for module in modules
        for item in module.modules()
    )
    return ["a DDP with static_graph=True can't be shown the order of its gradients"] * is_fixed


def watch_gradients(objects: Iterable[object]) -> None:
    """Note the order in which the gradients come in the first backward pass from now on."""
    for _, module in (found for item in objects for found in _learning(item)):
        if module not in _ORDERS:
            order = _ORDERS[module] = []
            hooks: dict[str, Any] = {}
            for name, parameter in module.module.named_parameters():
                if parameter.requires_grad:
                    note = partial(_note, order, hooks, name)
                    hooks[name] = parameter.register_hook(note)


def _note(order: list[str], hooks: dict[str, Any], name: str, _: torch.Tensor) -> None:
    if name in hooks:
        order.append(name)
        hooks.pop(name).remove()


def gradient_orders(module: nn.Module) -> dict[str, list[str]]:
    """Return the names in the order in which their gradients came, for each DDP in a module.

    By the path of the DDP; those for which it does not matter are left out.
    """
    if not _ORDERS:  # a walk over all modules is nothing to do for each checkpoint
        return {}
    return {path: list(_ORDERS[ddp]) for path, ddp in _learning(module) if _ORDERS.get(ddp)}


def show_gradients(module: nn.Module, orders: Mapping[str, Sequence[str]]) -> None:
    """Have each DDP in a module lay out its buckets by its order; all ranks call it."""
    for path, ddp in _learning(module):
        _show(ddp, orders.get(path, ()))


def _show(module: DistributedDataParallel, order: Sequence[str]) -> None:
    if not order or _ORDERS.get(module):
        return
    named = dict(module.module.named_parameters())
    if any(name not in named or not named[name].requires_grad for name in order):
        return
    parameters = [named[name] for name in order]
    gradients = [parameter.grad for parameter in parameters]
    kept = module.module
    module.module = _Zeros(parameters, _sparse_ones(kept))
    module.require_forward_param_sync = False  # buffers stay; its forward pass sets it again
    try:
        with torch.enable_grad():
            module.forward().backward()  # type: ignore[no-untyped-call]
    finally:
        module.module = kept
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    _ORDERS[module] = list(order)


def _sparse_ones(module: nn.Module) -> set[int]:
    """Return the ids of the parameters of which DDP expects sparse gradients."""
    kinds = nn.Embedding, nn.EmbeddingBag
    return {id(item.weight) for item in module.modules() if isinstance(item, kinds) and item.sparse}


class _Zeros(nn.Module):
    """Gives parameters gradients of zeros, in their order."""

    def __init__(self, parameters: Sequence[torch.Tensor], sparse: Collection[int]) -> None:
        super().__init__()
        self._shown = tuple(parameters)  # a tuple, so that they are not its own
        self._sparse = sparse

    def forward(self) -> torch.Tensor:
        """Return a sum; what is added last gets its gradient first."""
        total = self._shown[0].new_zeros(())
        for parameter in reversed(self._shown):
            total = total + (self._some_of(parameter).sum() * 0).to(total)
        return total

    def _some_of(self, parameter: torch.Tensor) -> torch.Tensor:
        if id(parameter) not in self._sparse:
            return parameter.flatten()[:1]
        row = torch.zeros(1, dtype=torch.long, device=parameter.device)
        return nn.functional.embedding(row, parameter, sparse=True)
