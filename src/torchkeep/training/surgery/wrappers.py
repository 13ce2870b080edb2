"""A model without what is wrapped round it."""

from __future__ import annotations

from torch import nn

_INSIDE = frozenset({"module", "_orig_mod"})


def unwrapped(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the model inside DataParallel, torch.compile and the like, and its names' prefix.

    >>> unwrapped(nn.DataParallel(nn.Linear(2, 2)))
    ('module.', Linear(in_features=2, out_features=2, bias=True))
    """
    prefix = ""
    while len(children := dict(model.named_children())) == 1 and _INSIDE & set(children):
        [(name, model)] = children.items()
        prefix += f"{name}."
    return prefix, model


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return a module's class; of one that FSDP2 has sharded, the one that it had before.

    Source: `fully_shard` makes a class of `FSDPModule` and the module's own one
    (torch/distributed/fsdp/_fully_shard/_fully_shard.py).
    """
    kind = type(module)
    is_sharded = len(kind.__bases__) == 2 and kind.__bases__[0].__name__ == "FSDPModule"
    return kind.__bases__[1] if is_sharded else kind
