"""Another number of input channels, with the first layer's weights adapted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.training.surgery.wrappers import unwrapped


@dataclass(frozen=True, slots=True)
class InputLayer:
    """A network's first convolutions, after their input channels were changed."""

    names: tuple[str, ...]
    """Where they are in the model; several where the input goes into parallel branches."""
    old_channels: int
    """The channels that the network took."""
    num_channels: int
    """Those that it takes now."""
    how: str
    """What became of the weights: `summed`, `repeated`, `drawn` anew, or `kept`."""
    changed: tuple[str, ...] = ()
    """What else of the model was changed, such as `transform_input=False`."""


def replace_input(
    model: nn.Module, num_channels: int, *, name: str | None = None, is_adapted: bool = True
) -> InputLayer:
    """Have a network take images of `num_channels` channels.

    For one channel the weights are summed over the old channels, so that a grey image gives what
    it gave as three equal channels. For others they are repeated in turn, and scaled by old/new, so
    that the sums stay of the same size. A frozen layer stays frozen.

    Args:
        model: the network, changed in place.
        num_channels: the channels of its input.
        name: the `nn.Conv2d` that takes the input; by default what timm's models say of themselves
            (`pretrained_cfg["first_conv"]`), else the first that the model registers.
        is_adapted: False draws new weights, as PyTorch does, instead of adapting the old.

    Raises:
        WrongArgument: there is no such convolution, it is grouped, its weight is computed from
            others, or `num_channels` is not positive.
    """
    if num_channels < 1:
        raise WrongArgument(f"an input has at least one channel, not {num_channels}")
    names = _input_names(model) if name is None else (name,)
    layers = [_convolution(model, item) for item in names]
    old_channels = _channels(model, layers[0])
    if num_channels == old_channels:
        return InputLayer(tuple(names), old_channels, num_channels, "kept")
    for layer in layers:
        _refuse_shape(model, layer, old_channels)
    for layer in layers:
        _change(layer, old_channels, num_channels, is_adapted=is_adapted)
    how = ("summed" if num_channels == 1 else "repeated") if is_adapted else "drawn"
    changed = _tell(model, names, old_channels, num_channels)
    return InputLayer(tuple(names), old_channels, num_channels, how, changed)


def adapt_channels(weight: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Return a weight `[out, channels, height, width]` for another number of channels.

    It is computed in float32 at least, and has the dtype of `weight`.
    """
    old_channels = weight.shape[1]
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if num_channels == 1:
        adapted = exact.sum(dim=1, keepdim=True)
    else:
        turns = [index % old_channels for index in range(num_channels)]
        adapted = exact[:, turns] * (old_channels / num_channels)
    return adapted.to(weight.dtype)


def _input_names(model: nn.Module) -> tuple[str, ...]:
    prefix, bare = unwrapped(model)
    config = getattr(bare, "pretrained_cfg", None)
    said = config.get("first_conv") if isinstance(config, dict) else None
    names = [said] if isinstance(said, str) else list(said or ())
    modules = dict(bare.named_modules())
    # An empty list says that the first layer is none to be changed.
    if said in ([], ()) or (names and all(item in modules for item in names)):
        found = names
    else:
        found = [key for key, item in modules.items() if isinstance(item, nn.Conv2d)][:1]
    if not found:
        raise WrongArgument(
            f"this {type(model).__name__} has no first convolution that could be replaced",
            advice="Pass the name of the Conv2d that takes the input.",
        )
    return tuple(prefix + item for item in found)


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    found = dict(model.named_modules()).get(name)
    if not isinstance(found, nn.Conv2d):
        raise WrongArgument(
            f"this {type(model).__name__} has no Conv2d called {name!r}",
            advice="Pass the name of the Conv2d that takes the input.",
        )
    if found.groups != 1 or "weight" not in found._parameters:
        raise WrongArgument(
            f"the weight of {name!r} can't be adapted: "
            + ("it is grouped" if found.groups != 1 else "it is computed from other tensors"),
            advice="Build the model with the channels that it is to have.",
        )
    return found


def _channels(model: nn.Module, layer: nn.Conv2d) -> int:
    """Return the channels of the images, which a layer may see as pixels side by side."""
    _, bare = unwrapped(model)
    config = getattr(bare, "pretrained_cfg", None)
    known = getattr(bare, "in_chans", None)
    if known is None and isinstance(config, dict) and config.get("input_size"):
        known = config["input_size"][0]
    if isinstance(known, int) and known > 0 and layer.in_channels % known == 0:
        return known
    return layer.in_channels


def _refuse_shape(model: nn.Module, layer: nn.Conv2d, old_channels: int) -> None:
    if layer.in_channels % old_channels:
        raise WrongArgument(
            f"a first convolution of this {type(model).__name__} takes {layer.in_channels} "
            f"channels, which {old_channels} don't divide",
            advice="Pass the name of the Conv2d that takes the input.",
        )


def _change(layer: nn.Conv2d, old_channels: int, num_channels: int, *, is_adapted: bool) -> None:
    old = layer.weight
    # Pixels side by side (space to depth) have their channels next to each other.
    num_pixels = layer.in_channels // old_channels
    if is_adapted:
        out, _, *size = old.shape
        blocks = old.detach().reshape(out * num_pixels, old_channels, *size)
        new = adapt_channels(blocks, num_channels).reshape(out, -1, *size)
    else:
        height, width = layer.kernel_size
        fresh = nn.Conv2d(num_channels * num_pixels, old.shape[0], (height, width), bias=False)
        new = fresh.weight.detach().to(device=old.device, dtype=old.dtype)
    layer.weight = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
    layer.in_channels = num_channels * num_pixels


def _tell(model: nn.Module, names: Iterable[str], old: int, new: int) -> tuple[str, ...]:
    """Have the model, and the modules round the layers, know the number of channels."""
    prefix, bare = unwrapped(model)
    changed = []
    owners = {prefix.rstrip(".")}
    for name in names:
        parts = name.split(".")
        owners |= {".".join(parts[:end]) for end in range(len(parts))}
    for owner in sorted(owners):
        module = model.get_submodule(owner)
        if vars(module).get("in_chans") == old:
            module.in_chans = new  # type: ignore[assignment]
            changed.append(f"{owner}.in_chans={new}".lstrip("."))
    # torchvision's Inception and GoogLeNet normalise the three channels of their own files.
    if vars(bare).get("transform_input") is True:
        bare.transform_input = False  # type: ignore[assignment]
        changed.append("transform_input=False")
    return tuple(changed)
