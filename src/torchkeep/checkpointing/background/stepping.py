"""What only an optimizer's step changes, and who tells before one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from torchkeep.checkpointing.state.sharded import local_of
from torchkeep.checkpointing.state.walking import all_parameters, leaves


def hookable_optimizers(objects: Mapping[str, Any]) -> list[Optimizer]:
    """Return the optimizers among the objects, or those that they wrap, that tell before a step.

    None if one of them can't: then nobody says when parameters are about to change.
    """
    found = [item for item in leaves(dict(objects)) if isinstance(item, Optimizer)]
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
    tensors += all_parameters(dict(objects)) if optimizers else ()
    return {
        local_of(item).data_ptr()
        for item in tensors
        if isinstance(item, torch.Tensor)
        and item.layout == torch.strided  # others have no address
        and not item._post_accumulate_grad_hooks  # these may change it with each gradient
    }
