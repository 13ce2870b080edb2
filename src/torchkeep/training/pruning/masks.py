"""Masks of `torch.nn.utils.prune`, which zero weights and save nothing, made permanent.

Such a mask stands beside the weights (`weight_orig` and `weight_mask` in place of `weight`), and
the weight that the layer uses is their product, made anew before every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import prune

from torchkeep.contents import child_path
from torchkeep.errors import WrongArgument


@dataclass(frozen=True, slots=True)
class MaskedTensor:
    """A tensor that had a mask."""

    name: str
    """Its name, as it is now."""
    num_masked: int
    """Elements that the mask set to zero."""
    numel: int
    """Elements in all."""

    @property
    def sparsity(self) -> float:
        """The share of the elements that the mask set to zero, from 0 to 1."""
        return self.num_masked / self.numel if self.numel else 0.0


@dataclass(frozen=True, slots=True)
class MaskReport:
    """The masks that were made permanent."""

    tensors: tuple[MaskedTensor, ...]
    """What had a mask, in the model's order."""

    @property
    def sparsity(self) -> float:
        """The share of zeros that the masks made, in all of the tensors that had one."""
        total = sum(item.numel for item in self.tensors)
        return sum(item.num_masked for item in self.tensors) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Unmasked:
    """A state dict whose masks were made permanent."""

    state: dict[str, torch.Tensor]
    """The state dict without `*_orig` and `*_mask`, fit for a model without masks."""
    report: MaskReport
    """What had a mask."""


def make_masks_permanent(model: nn.Module) -> MaskReport:
    """Apply the masks of `torch.nn.utils.prune`, remove them, and return what had one.

    The outputs stay the same bit for bit. The names in the state dict become those of the model
    without masks. An optimizer made before still has the old parameters' objects.

    Args:
        model: the model, changed in place; without masks nothing happens.
    """
    found = [
        (path, module, hook._tensor_name)
        for path, module in model.named_modules()
        for hook in list(module._forward_pre_hooks.values())
        if isinstance(hook, prune.BasePruningMethod)
    ]
    tensors = []
    for path, module, name in found:
        tensors.append(_described(child_path(path, name), getattr(module, f"{name}_mask")))
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    return MaskReport(tuple(tensors))


def unmasked(state: Mapping[str, torch.Tensor]) -> Unmasked:
    """Return a state dict with its masks applied, as new tensors; the given one stays as it is.

    Args:
        state: a state dict, for instance from `torchkeep.load`. Only what has both a `*_orig` and
            a `*_mask` is a masked tensor; an `attn_mask` alone is a buffer like any other.

    Raises:
        WrongArgument: a mask and its tensor differ in shape, or the tensor is there besides.
    """
    made: dict[str, torch.Tensor] = {}
    tensors = []
    for key, value in state.items():
        base = key.removesuffix("_orig").removesuffix("_mask")
        values, mask = state.get(f"{base}_orig"), state.get(f"{base}_mask")
        if base == key or values is None or mask is None:
            made[key] = value
        elif key.endswith("_orig"):
            _check(state, base, values, mask)
            made[base] = mask.to(dtype=values.dtype) * values
            tensors.append(_described(base, mask))
    return Unmasked(made, MaskReport(tuple(tensors)))


def _check(
    state: Mapping[str, torch.Tensor], name: str, values: torch.Tensor, mask: torch.Tensor
) -> None:
    if values.shape != mask.shape:
        raise WrongArgument(
            f"the mask of {name} is {list(mask.shape)}, and the tensor {list(values.shape)}",
            advice="They are not of one model: take both from the same file.",
        )
    if name in state:
        raise WrongArgument(
            f"{name} is there with a mask and without",
            advice=f"Remove {name}, or {name}_orig and {name}_mask.",
        )


def _described(name: str, mask: torch.Tensor) -> MaskedTensor:
    return MaskedTensor(name, int((mask == 0).sum()), mask.numel())
