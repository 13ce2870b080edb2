"""The adaptations of `matching.adaptations`, computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

import torch

from torchkeep.errors import LoadMismatch
from torchkeep.matching.adaptations import Adapted
from torchkeep.tensors import torch_dtype

Tensor = torch.Tensor


def adapted(tensor: Tensor, live: Tensor, steps: Iterable[Adapted], name: str = "") -> Tensor:
    """Return a file's tensor as the model is to have it, where the file's tensor is.

    What an adaptation leaves alone is taken from the model's tensor. So to adapt the file's once
    more for the result changes nothing; this is how the result is proven.

    Args:
        tensor: the file's tensor.
        live: the model's.
        steps: the adaptations, in order.
        name: what to call the file's tensor in an error.

    Raises:
        LoadMismatch: a cast would make another number of one: infinity of what is too large, or a
            remainder of an integer.
    """
    for step in steps:
        made = COMPUTATIONS[step.name](tensor, live, *step.arguments)
        if step.name == "cast" and _overflows(tensor, made):
            what = repr(name) if name else "a tensor"
            raise LoadMismatch(
                f"{what} ({step.text}) has numbers that are too large for a cast",
                advice="Give the model another dtype (bfloat16 has the range of float32), or skip "
                "the tensor.",
            )
        tensor = made
    return tensor


def _cast(tensor: Tensor, _live: Tensor, dtype: str) -> Tensor:
    return tensor.to(torch_dtype(dtype))


def _overflows(old: Tensor, new: Tensor) -> bool:
    """Whether a cast made another number of one, by more than it rounds."""
    if not (new.is_floating_point() or new.is_complex()):
        # Between int64 and uint64, both ways together change nothing.
        has_sign = [tensor.dtype.is_signed and bool((tensor < 0).any()) for tensor in (old, new)]
        return has_sign[0] != has_sign[1] or not torch.equal(new.to(old.dtype), old)
    if torch.finfo(new.dtype).max >= torch.finfo(old.dtype).max:
        return False
    # Some dtypes have no infinity: what is too large for them becomes their largest number.
    limits = torch.finfo(new.dtype)
    wide = old.float() if old.itemsize == 1 else old  # those of a byte have no arithmetic
    is_clipped = wide.abs() > limits.max * (1 + limits.eps / 4)
    return bool((wide.isfinite() & (is_clipped | ~new.to(wide.dtype).isfinite())).any())


def _slice(tensor: Tensor, live: Tensor, taken: int) -> Tensor:
    return _by_class(tensor, live, *((row, row) for row in range(taken)))


def _by_class(tensor: Tensor, live: Tensor, *rows: tuple[int, int]) -> Tensor:
    """Return the model's tensor with some of its rows from the file, given as pairs (new, old)."""
    new, old = zip(*rows, strict=True)
    made = live.detach().to(tensor.device, tensor.dtype, copy=True)
    made[list(new)] = tensor[list(old)]
    return made


# --- Input channels ------------------------------------------------------------------------------
# As `timm.models.adapt_input_conv` does it: for equal channels, what comes out stays the same.


def _sum_channels(tensor: Tensor, _live: Tensor) -> Tensor:
    return _in_float(tensor, lambda values: values.sum(1, keepdim=True))


def _repeat_channels(tensor: Tensor, _live: Tensor, channels: int) -> Tensor:
    old = tensor.shape[1]
    chosen = [number % old for number in range(channels)]
    return _in_float(tensor, lambda values: values[:, chosen] * (old / channels))


def _average_channels(tensor: Tensor, _live: Tensor, channels: int) -> Tensor:
    shape = (tensor.shape[0], channels, *tensor.shape[2:])
    return _in_float(tensor, lambda values: (values.sum(1, keepdim=True) / channels).expand(shape))


# --- Positions -----------------------------------------------------------------------------------


def _resample(
    tensor: Tensor,
    _live: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    num_extra: int,
    layout: str,
) -> Tensor:
    return _in_float(tensor, lambda values: _LAYOUTS[layout](values, old, new, num_extra))


def _resized(grid: Tensor, new: tuple[int, int]) -> Tensor:
    """Return [N, D, H, W] in another size: bicubic, low-passed where it shrinks.

    As `timm.layers.resample_abs_pos_embed` does it.
    """
    return torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)


def _channels_first(values: Tensor, _old: object, new: tuple[int, int], _extra: int) -> Tensor:
    return _resized(values, new)


def _channels_last(values: Tensor, _old: object, new: tuple[int, int], _extra: int) -> Tensor:
    return _resized(values.permute(0, 3, 1, 2), new).permute(0, 2, 3, 1)


def _tokens(values: Tensor, old: tuple[int, int], new: tuple[int, int], num_extra: int) -> Tensor:
    extra, places = values[..., :num_extra, :], values[..., num_extra:, :]
    return torch.cat([extra, _places(places, old, new)], dim=-2)


def _biases(values: Tensor, old: tuple[int, int], new: tuple[int, int], num_extra: int) -> Tensor:
    split = values.shape[-2] - num_extra
    return torch.cat([_places(values[:split], old, new), values[split:]], dim=-2)


def _places(places: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Return [..., H * W, D] in another size."""
    grid = places.reshape(-1, *old, places.shape[-1]).permute(0, 3, 1, 2)
    tokens = _resized(grid, new).permute(0, 2, 3, 1)
    return tokens.reshape(*places.shape[:-2], -1, places.shape[-1])


_LAYOUTS: dict[str, Callable[[Tensor, tuple[int, int], tuple[int, int], int], Tensor]] = {
    "channels first": _channels_first,
    "channels last": _channels_last,
    "tokens": _tokens,
    "biases": _biases,
}


def _in_float(tensor: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what is computed in single precision at least, in the tensor's own dtype."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return compute(wide).to(tensor.dtype).contiguous()


COMPUTATIONS: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "classes": _by_class,
        "slice": _slice,
        "sum-channels": _sum_channels,
        "repeat-channels": _repeat_channels,
        "average-channels": _average_channels,
        "resample": _resample,
        "cast": _cast,
    }
)
"""Each adaptation by name: from the file's tensor, the model's, and its arguments."""
