"""What a model makes of given inputs, by name, and how far that is from what it once was.

Outputs are compared by the largest difference in relation to the largest value of the tensor, since
an element near zero, the rest of a large sum, has no digits of its own to agree in.

How much is allowed was measured on eleven networks of torchvision and timm, on a processor with two
cores. Of float32, one thread against two, contiguous against channels_last, one sample against two
in a batch, and with and without oneDNN differ by up to 2e-6, and from float64 by as much; another
eps by 4e-4 to 1e-2, and the tanh form of GELU by 2e-4. So 2e-5 is allowed. In float16 the networks
differ by up to 3e-3 from float32, and in bfloat16 by up to 2e-2. Graphics cards may compute
convolutions of float32 in TF32, which has as many digits as float16; that was not measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from torchkeep.contents import child_path
from torchkeep.modes import evaluating
from torchkeep.tensors import dtype_name, plain_on_cpu

Preprocess = Callable[..., Any]
"""From raw inputs to what the model takes: a tensor, a tuple of arguments, or a dict of them."""

_RTOL = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.complex128: 1e-12,
    torch.complex64: 2e-5,
}
_RTOL_TF32 = _RTOL[torch.float16]

ATOL = 1e-8
"""What may differ where a tensor is zero all over."""


# --- Running -----------------------------------------------------------------------------------


def place_of(model: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device of a model's first tensor, and the dtype of its first floating one."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return device, next(floating, torch.float32)


@contextlib.contextmanager
def generators_kept(model: torch.nn.Module) -> Iterator[None]:
    """Put PyTorch's generators of random numbers back when the block ends."""
    device, _ = place_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def run(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    preprocess: Preprocess | None = None,
    cast_from: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of the model's output by name, in evaluation mode, on the CPU.

    The inputs are copied to the model's device, so that a layer that works in place changes none.

    Args:
        model: the model; its modes are put back.
        args: the inputs without names.
        kwargs: those with names.
        preprocess: what to put them through first.
        cast_from: the floating type of inputs that are to be cast to the model's.
    """
    device, dtype = place_of(model)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        kind = dtype if tensor.dtype == cast_from else tensor.dtype
        return tensor.to(device, kind, copy=True)

    with evaluating(model), torch.autocast(device.type, enabled=False):
        if preprocess is not None:
            args, kwargs = as_arguments(
                preprocess(*_mapped(args, _clone), **_mapped(kwargs, _clone))
            )
        output = model(*_mapped(args, moved), **_mapped(kwargs, moved))
        return {name: plain_on_cpu(tensor).clone() for name, tensor in named_tensors(output)}


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how a model is called with inputs: a tuple of arguments, a dict of them, or one."""
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,), {}


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return plain containers with their tensors changed; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def named_tensors(output: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors and numbers in what a model returned, named by where they stand."""
    if isinstance(output, torch.Tensor):
        yield name, output
    elif isinstance(output, bool | int | float):
        yield name, torch.tensor(output)
    else:
        for key, item in _children(output):
            yield from named_tensors(item, child_path(name, key))


def _children(output: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        yield from zip(names, output, strict=True)
    elif is_dataclass(output):
        for field in fields(output):
            yield field.name, getattr(output, field.name)


# --- Comparing ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one tensor of an output is from what it once was."""

    sample: int
    """The number of the sample, from 1."""
    name: str
    """Where the tensor stands in the output; empty if it is the output."""
    expected: str
    """Its type and shape as stored, such as `float32 [2, 10]`."""
    found: str
    """Those now; empty if there is no such tensor."""
    largest_absolute: float
    """The largest difference of two elements; infinite if the shapes differ, or where one is not a
    number and the other is."""
    largest_relative: float
    """The same in relation to the largest absolute value that was stored."""
    allowed: float
    """The largest absolute difference that is allowed."""
    argmax_agreement: float | None
    """The share of predictions that are the same: of the positions of the largest value along the
    classes. None for what is no prediction."""

    @property
    def is_close(self) -> bool:
        """Whether it is as near as it has to be."""
        return self.largest_absolute <= self.allowed


def default_rtol(*dtypes: torch.dtype, on_cpu: bool) -> float:
    """Return the relative difference that is allowed for what went through all these types."""
    rtol = max((_RTOL.get(dtype, 0.0) for dtype in dtypes), default=0.0)
    is_float32 = torch.float32 in dtypes or torch.complex64 in dtypes
    return rtol if on_cpu or not is_float32 else max(rtol, _RTOL_TF32)


def difference(
    sample: int,
    name: str,
    expected: torch.Tensor,
    found: torch.Tensor | None,
    *,
    rtol: float,
    atol: float,
) -> OutputDifference:
    """Return how far a tensor is from the expected one; integers must be the same.

    Args:
        sample: the number of the sample.
        name: where the tensors stand in the output.
        expected: what was stored, on the CPU.
        found: what is there now, on the CPU; None if there is none.
        rtol: what is allowed in relation to the largest absolute value of `expected`.
        atol: what is allowed besides.
    """
    described = _described(expected), "" if found is None else _described(found)
    if found is None or found.shape != expected.shape:
        return OutputDifference(sample, name, *described, torch.inf, torch.inf, 0.0, None)
    largest, scale = _largest_difference(expected, found), _largest(expected)
    is_exact = not (expected.is_floating_point() or expected.is_complex())
    return OutputDifference(
        sample,
        name,
        *described,
        largest_absolute=largest,
        largest_relative=largest / scale if scale else torch.inf if largest else 0.0,
        allowed=0.0 if is_exact else atol + rtol * scale,
        argmax_agreement=_agreement(expected, found),
    )


def _described(tensor: torch.Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _largest(tensor: torch.Tensor) -> float:
    """Return the largest absolute value that is finite; 0 if there is none."""
    sizes = _exact(tensor).abs()
    sizes = sizes[sizes.isfinite()]
    return float(sizes.max()) if sizes.numel() else 0.0


def _largest_difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    one, two = _exact(expected), _exact(found)
    # Infinite values and NaN are right where they were stored.
    same = (one == two) | (one.isnan() & two.isnan())
    gaps = (one - two).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return float(gaps.max()) if gaps.numel() else 0.0


def _agreement(expected: torch.Tensor, found: torch.Tensor) -> float | None:
    """Compare predictions: classes are the last of two or three dimensions, the second of more."""
    dim = 1 if expected.dim() > 3 else -1
    if expected.dim() < 2 or not expected.is_floating_point() or expected.shape[dim] < 2:
        return None
    agree = expected.argmax(dim) == found.argmax(dim)
    return float(agree.double().mean()) if agree.numel() else None
