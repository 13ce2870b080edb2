"""A network that computes in a smaller floating type, and is called as before."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torchkeep.errors import ExportRefused
from torchkeep.exporting.targets.exporters import reason
from torchkeep.exporting.targets.target import Program

if TYPE_CHECKING:
    import torch

HALVES = ("float16", "bfloat16")
"""The precisions that are types of floating-point numbers."""


def cast(program: Program, precision: str) -> Program:
    """Return a program whose network computes in a half; inputs and outputs stay what they were.

    Args:
        program: the network, which is copied.
        precision: one of `HALVES`. With any other the program is returned as it is.

    Raises:
        ExportRefused: the network mixes that type with float32.
    """
    import torch

    if precision not in HALVES:
        return program
    dtype: torch.dtype = getattr(torch, precision)
    model = copy.deepcopy(program.model).to(dtype)
    # Hooks, and no module around it: the names of inputs and layers stay what they are.
    model.register_forward_pre_hook(lambda _, args: tuple(_cast(arg, dtype) for arg in args))
    model.register_forward_hook(lambda _, __, output: _cast(output, torch.float32))
    try:
        with torch.no_grad():
            model(*program.args)
    except Exception as error:  # the network's own code runs, and raises anything
        raise ExportRefused(
            f"the network does not run in {precision} ({reason(error)})",
            advice="It makes tensors of float32 on its way: have it make them of its input's type, "
            "or export float32.",
        ) from error
    return replace(program, model=model)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return tensors of floating-point numbers in a type, and all else as it is."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update({key: _cast(item, dtype) for key, item in value.items()})
        return made
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(item, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        cast_fields = {each.name: _cast(getattr(value, each.name), dtype) for each in fields(value)}
        return replace(value, **cast_fields)
    return value
