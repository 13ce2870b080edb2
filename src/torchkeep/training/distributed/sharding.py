"""A network in pieces on several ranks: which of its blocks FSDP2 gathers at a time, and how."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn

from torchkeep.training.surgery import stages


def shard(model: nn.Module) -> None:
    """Shard a network over all ranks in place, block by block, so that one is whole at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    for block in _blocks(model):
        block.register_forward_hook(_no_view)  # before that of FSDP2
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # Also the rest: it would stay whole after an evaluation.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _no_view(block: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Return a block's output, copied if it is a view.

    FSDP2 hangs on it what gathers the block's parameters for the backward pass. If the network adds
    to a view in place, as many do (`x += y`), that is lost without a word.
    """
    del block, inputs
    is_view = isinstance(outputs, torch.Tensor) and outputs._is_view()
    return outputs.clone() if is_view else outputs


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of layers that a network has; those within others come first."""
    modules = dict(model.named_modules())
    places = sorted({item.name for item in stages(model)} & modules.keys())
    deep_first = sorted(places, key=lambda place: -place.count("."))
    return [block for place in deep_first if _is_block(block := modules[place])]


def _is_block(module: nn.Module) -> bool:
    is_called = type(module).forward is not nn.Module.forward  # a mere list is not
    return is_called and len(list(module.children())) > 1
