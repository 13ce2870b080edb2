"""How wide a layer is: which attributes say it, and which shapes its tensors have then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Widths = Mapping[str, int]
"""Numbers of channels by the attribute that says them."""

Shapes = dict[str, tuple[int, ...]]
"""Shapes by the name that a tensor has in its layer."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of layers whose widths can change."""

    cls: type[nn.Module]
    """Their class, or one that theirs is made from."""
    attributes: tuple[str, ...]
    """The attributes that say how wide it is, each a number of channels or of groups of them."""
    shapes: Callable[[nn.Module, Widths], Shapes | None]
    """The shapes of its tensors at given widths; None if no such layer could be."""


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a layer, or None for what has no widths of its own."""
    return next((kind for kind in _KINDS if isinstance(module, kind.cls)), None)


def widths_of(module: nn.Module, kind: Kind) -> dict[str, int]:
    """Return how wide a layer says it is."""
    found = {name: getattr(module, name) for name in kind.attributes}
    return {
        name: value[0] if isinstance(value, tuple) else int(value) for name, value in found.items()
    }


def set_widths(module: nn.Module, widths: Widths) -> None:
    """Have a layer say that it is so wide; its tensors are somebody else's affair."""
    for name, value in widths.items():
        is_tuple = isinstance(getattr(module, name), tuple)
        setattr(module, name, (value,) if is_tuple else value)


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that are a layer's own, by their names in it."""
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    buffers = module.named_buffers(recurse=False, remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _conv(module: nn.Module, widths: Widths) -> Shapes | None:
    assert isinstance(module, _ConvNd)  # noqa: S101 - for the type checker
    incoming, outgoing, groups = (
        *(widths["in_channels"], widths["out_channels"], widths["groups"]),
    )
    if incoming % groups or outgoing % groups:
        return None
    pair = (incoming, outgoing // groups) if module.transposed else (outgoing, incoming // groups)
    return {"weight": (*pair, *module.kernel_size), "bias": (outgoing,)}


def _linear(_module: nn.Module, widths: Widths) -> Shapes:
    outgoing = widths["out_features"]
    return {"weight": (outgoing, widths["in_features"]), "bias": (outgoing,)}


def _per_channel(module: nn.Module, widths: Widths) -> Shapes | None:
    (width,) = widths.values()
    if isinstance(module, nn.GroupNorm) and width % module.num_groups:
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return None
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,))


_KINDS = (
    Kind(_ConvNd, ("in_channels", "out_channels", "groups"), _conv),
    Kind(nn.Linear, ("in_features", "out_features"), _linear),
    Kind(_NormBase, ("num_features",), _per_channel),
    Kind(nn.LayerNorm, ("normalized_shape",), _per_channel),
    Kind(nn.GroupNorm, ("num_channels",), _per_channel),
    Kind(nn.PReLU, ("num_parameters",), _per_channel),
)
