"""Which tensors can be written as data at all."""

from __future__ import annotations

import torch

from torchkeep.errors import SaveRefused

_CLASSES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def check_tensor(value: object, name: str) -> None:
    """Raise unless the value is a dense tensor that has bytes.

    Raises:
        SaveRefused: it is no tensor, or one on `meta`, sparse, quantized, nested, or of a class
            that keeps its values elsewhere. The message names it.
    """
    if not isinstance(value, torch.Tensor):
        raise SaveRefused(
            f"{name!r} is of type {_type_name(value)}, and only tensors can be stored here",
            advice="Leave it out, pass it as metadata, or save as .pth.",
        )
    check_has_values(value, name)
    problem, advice = _not_dense(value)
    if problem:
        raise SaveRefused(f"tensor {name!r} {problem}", advice=f"{advice}, or as .pth.")


def check_has_values(tensor: torch.Tensor, name: str) -> None:
    """Raise unless the tensor, of any layout, is made of values in memory.

    Raises:
        SaveRefused: it is on `meta`, not initialised, jagged, or of a class that keeps its values
            elsewhere. The message names it.
    """
    problem, advice = _no_values(tensor)
    if problem:
        raise SaveRefused(f"tensor {name!r} {problem}", advice=advice)


def _no_values(tensor: torch.Tensor) -> tuple[str, str]:
    """Return what keeps the tensor from being written and what to do, or two empty texts."""
    if tensor.is_meta:
        return "is on the meta device and has no values", "Load or initialise the model first."
    if type(tensor) in _CLASSES:
        return "", ""
    if torch.nn.parameter.is_lazy(tensor):
        return "is not initialised yet", "Run one batch through the model first."
    if tensor.layout == torch.jagged:
        return "is jagged", "Save its values() and offsets()."
    return f"is a {_type_name(tensor)}, whose values are not its bytes", (
        "Save a plain tensor made from it."
    )


def _not_dense(tensor: torch.Tensor) -> tuple[str, str]:
    if tensor.layout != torch.strided:
        return f"is sparse ({tensor.layout})", "Save tensor.to_dense(), or its indices and values"
    if tensor.is_quantized:
        return "is quantized", "Save tensor.dequantize()"
    if tensor.is_nested:
        return "is nested", "Save its parts"
    return "", ""


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
