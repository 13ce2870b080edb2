"""Quantization-aware training: a network computes as in 8 bits, and is trained to be good so.

The layers that multiply by weights, convolutions and linear ones, round their weight and their
input to 8 bits and back before they compute; gradients pass as if nothing had been rounded, but
for inputs beyond the range. Nothing else of the network changes: parameters have their names and
values, and the state dict is that of the plain network. What is added is one buffer for each layer,
`input_range`, which is no part of the state dict.

    weight   -64 to 64, symmetric, a scale for each output channel, from the weight itself: the
             seven bits that the ONNX file has (`exporting/targets/onnx_int8.py`). A
             scale for each channel is multiplied by what BatchNorm multiplies the channel by, so
             that to round and to fold a BatchNorm into its convolution is the same in either order.
    input    256 levels for all of a tensor, over a range that has 0 in it, which is exact. In
             training mode the range follows the least and the greatest value of the batches; in
             evaluation mode, and where the weight is frozen, it stands still.

Both are PyTorch's own operations, in float32 whatever the network computes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.modes import evaluating
from torchkeep.wording import printable, shortened

Ranges = Mapping[str, tuple[float, float]]
"""By the name of a layer, the least (0 at the most) and the greatest value (0 at the least) that
its input has in 8 bits."""

_RANGE = "input_range"
_FOLLOWING = 0.01
"""How much of a range is that of the newest batch, as in PyTorch's observers."""
_MOST = 64
"""The largest number that a weight is rounded to."""
_LEAST_SCALE = 1e-30
"""Of a channel or an input that is all zeros. Small, since a BatchNorm may make much of little."""
_KIND = {"bits": 8, "weights": "per-channel symmetric"}
_MOST_LAYERS = 1 << 16
_LARGEST = torch.finfo(torch.float32).max


# --- Observing and putting on ------------------------------------------------------------------


def observe_ranges(model: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Return the ranges of the inputs of all layers that can compute in 8 bits.

    The network runs in evaluation mode. What does not run there, such as an auxiliary output, and
    layers whose weights are used without calling them, as attention of PyTorch does, have none.

    Args:
        model: a network without fake quantization; it is not changed.
        batches: inputs `[n, ...]`, on its device. The ranges are means over them.

    Raises:
        WrongArgument: a layer's input is NaN or infinite, or there is no layer with a range.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    layers = {name: layer for name, layer in model.named_modules() if _compute_of(layer)}
    try:
        for name, layer in layers.items():
            # Where `fake_quantize` will be: what is not called here would not be there.
            rows = seen.setdefault(name, [])
            layer.forward = partial(_observing, layer, rows)
        with evaluating(model):
            for inputs in batches:
                model(inputs)
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)
    means = {name: torch.stack(rows).mean(dim=0).tolist() for name, rows in seen.items() if rows}
    for name, row in means.items():
        if not all(map(isfinite, row)):
            raise WrongArgument(
                f"the input of {printable(name)} has values that are NaN or infinite",
                advice="Look at the weights and at the images: torchkeep doctor does.",
            )
    if not means:
        raise WrongArgument(
            f"this {type(model).__name__} has no layer that can compute in 8 bits",
            advice="Convolutions and linear layers of PyTorch can.",
        )
    return {name: (low, high) for name, (low, high) in means.items()}


def fake_quantize(model: nn.Module, ranges: Ranges) -> None:
    """Have a network compute as in 8 bits, in evaluation and in training.

    A network that does so already gets the ranges. Copies (`copy.deepcopy`) do so as well.

    Args:
        model: the network, changed in place: the layers named have an `input_range` `[2]` each.
        ranges: of the layers' inputs: those that `observe_ranges` returned, or `Card.qat`.

    Raises:
        WrongArgument: a layer that is named is not there, or can't compute in 8 bits.
    """
    modules = dict(model.named_modules())
    for name in ranges:
        if name not in modules or not _can_have_range(modules[name]):
            raise WrongArgument(
                f"{shortened(name)} is no layer of this {type(model).__name__} that can compute "
                "in 8 bits",
                advice="The ranges are those of another network.",
            )
    for name, limits in ranges.items():
        layer = modules[name]
        device = layer.get_parameter("weight").device
        values = torch.tensor(limits, dtype=torch.float32, device=device)
        compute = _compute_of(layer)
        if compute is None:
            layer.get_buffer(_RANGE).copy_(values)
            continue
        layer.register_buffer(_RANGE, values, persistent=False)
        # On the instance, so that the layer stays of its class; a partial goes through deepcopy.
        layer.forward = partial(_in_8_bits, layer, compute)


def is_fake_quantized(layer: nn.Module) -> bool:
    """Whether `fake_quantize` has changed this layer."""
    forward = vars(layer).get("forward")
    return isinstance(forward, partial) and forward.func is _in_8_bits


def input_ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the ranges of a network that computes as in 8 bits, as they are now."""
    found = {}
    for name, layer in model.named_modules():
        if is_fake_quantized(layer):
            low, high = layer.get_buffer(_RANGE).tolist()
            found[name] = (low, high)
    return found


def layers_in_float(model: nn.Module) -> Counter[str]:
    """Return how many modules of which class have weights that are not computed with in 8 bits.

    Weights are parameters of two dimensions or more; a bias, or a norm's, is none.
    """
    return Counter(
        type(module).__name__
        for module in model.modules()
        if not is_fake_quantized(module)
        and any(sum(side > 1 for side in item.shape) > 1 for item in module.parameters(False))
    )


# --- Computing ---------------------------------------------------------------------------------

_Compute = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""What a layer gives for an input and a weight."""


def _convolve(layer: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = layer._conv_forward(inputs, weight, layer.bias)
    return result


def _multiply(layer: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.linear(inputs, weight, layer.bias)


def _convolve_same(layer: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    from timm.layers.conv2d_same import conv2d_same

    others = layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    result: torch.Tensor = conv2d_same(inputs, weight, *others)
    return result


_COMPUTE: dict[type, _Compute] = {
    nn.Conv1d: _convolve,
    nn.Conv2d: _convolve,
    nn.Conv3d: _convolve,
    nn.Linear: _multiply,
}
_COMPUTE_BY_NAME: dict[str, _Compute] = {
    "timm.layers.linear.Linear": _multiply,
    "timm.layers.conv2d_same.Conv2dSame": _convolve_same,
}
"""Those of timm, without importing it. Others that inherit may do more in `forward`, such as to
standardise the weight, or not have it called at all."""


def _compute_of(layer: nn.Module) -> _Compute | None:
    """Return how a layer computes with another weight; None if it can't, or no longer as usual."""
    if "forward" in vars(layer) or "weight" not in layer._parameters:
        return None
    kind = type(layer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return _COMPUTE.get(kind) or _COMPUTE_BY_NAME.get(name)


def _can_have_range(layer: nn.Module) -> bool:
    return is_fake_quantized(layer) or _compute_of(layer) is not None


# The argument has the name that it has in the layers of PyTorch: some call it by that.
def _observing(layer: Any, seen: list[torch.Tensor], input: torch.Tensor) -> torch.Tensor:
    seen.append(_range_of(input))
    result: torch.Tensor = type(layer).forward(layer, input)
    return result


def _in_8_bits(layer: Any, compute: _Compute, input: torch.Tensor) -> torch.Tensor:
    if layer.training and layer.weight.requires_grad:
        layer.input_range.lerp_(_range_of(input), _FOLLOWING)
    return compute(layer, _rounded_input(input, layer.input_range), _rounded_weight(layer.weight))


def _range_of(inputs: torch.Tensor) -> torch.Tensor:
    """Return the least and the greatest value `[2]`, such that 0 is between them."""
    low, high = inputs.detach().float().aminmax()
    return torch.stack([low.clamp(max=0.0), high.clamp(min=0.0)])


def _rounded_input(inputs: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    low, high = limits.unbind()
    scale = ((high - low) / 255).clamp(min=_LEAST_SCALE)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    rounded = torch.fake_quantize_per_tensor_affine(inputs.float(), scale, zero, 0, 255)
    return rounded.to(inputs.dtype)


def _rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    values = weight.float()
    scale = values.detach().abs().flatten(1).amax(dim=1).div(_MOST).clamp(min=_LEAST_SCALE)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(values, scale, zero, 0, -_MOST, _MOST)
    return rounded.to(weight.dtype)


# --- As JSON -----------------------------------------------------------------------------------


def ranges_to_json(ranges: Ranges) -> dict[str, Any]:
    """Return ranges as they stand in a file's metadata, with how weights and inputs are rounded."""
    return {**_KIND, "inputs": {name: list(limits) for name, limits in ranges.items()}}


def ranges_from_json(value: object) -> dict[str, tuple[float, float]]:
    """Return the ranges that a file says.

    Raises:
        DamagedFile: it says something else, or ranges that none can be.
    """
    inputs = value.get("inputs") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(inputs, dict):
        raise _broken("is no table of the ranges of inputs")
    if any(value.get(key) != usual for key, usual in _KIND.items()):
        raise _broken("is of another kind than 8 bits, with symmetric weights by channel")
    if not 0 < len(inputs) <= _MOST_LAYERS:
        raise _broken(f"has ranges of {len(inputs):,} layers, and not of 1 to {_MOST_LAYERS:,}")
    return {name: _limits(name, item) for name, item in inputs.items()}


def _limits(name: str, value: object) -> tuple[float, float]:
    if isinstance(value, list) and [type(x) in (int, float) for x in value] == [True, True]:
        low, high = value
        if -_LARGEST <= low <= 0 <= high <= _LARGEST:
            return float(low), float(high)
    raise _broken(f"has no range of numbers with 0 in it for {shortened(name)}")


def _broken(why: str) -> DamagedFile:
    return DamagedFile(f"its metadata 'qat' {why}")
