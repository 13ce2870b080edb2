"""Which layer of a written file is the first to differ from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from torchkeep.exporting.targets.arrays import as_array
from torchkeep.wording import printable, shortened

_LEAST = 1e-3
"""What a layer differs by, as a share of its largest value, before it is called the culprit."""


def first_layer_that_differs(
    model: nn.Module, args: Sequence[torch.Tensor], found: Mapping[str, Any]
) -> str:
    """Return a sentence about the first layer that differs; empty if none is known to.

    Args:
        model: the original.
        args: the inputs that the file was run on.
        found: the outputs of its layers, by the names of the original's modules.
    """
    last = ""
    for name, expected in _outputs_of_layers(model, args).items():
        other = found.get(name)
        if other is None or other.shape != expected.shape:
            continue
        gap = _gap(expected, other)
        if gap > _LEAST:
            kind = type(model.get_submodule(name)).__name__
            before = f"; {printable(last)} before it is as it should be" if last else ""
            return (
                f"The first layer that differs is {printable(name)} ({kind}), by {gap:.2g} of "
                f"its largest value{before}."
            )
        last = name
    return ""


def first_tensor_that_differs(model: nn.Module, found: Mapping[str, Any]) -> str:
    """Return a sentence about the first parameter or buffer that differs; empty if none does.

    Args:
        model: the original.
        found: the file's parameters and buffers, by the original's names.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        other = found.get(name)
        if other is None:
            continue
        expected = as_array(tensor)
        if expected.shape != other.shape or not np.array_equal(expected, other, equal_nan=True):
            return f"The file's {shortened(name, 100)} is not the original's."
    return ""


def _outputs_of_layers(model: nn.Module, args: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the outputs of the modules that are called once, in the order of their ends."""
    found: dict[str, Any] = {}
    again: set[str] = set()

    def keep(name: str, output: Any) -> None:
        if name in found:
            again.add(name)
        elif isinstance(output, torch.Tensor):
            # A layer after it may work in place.
            found[name] = as_array(output.clone())

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model(*(arg.clone() for arg in args))
    finally:
        for handle in handles:
            handle.remove()
    return {name: array for name, array in found.items() if name not in again}


def _gap(expected: Any, other: Any) -> float:
    largest = float(np.abs(expected).max(initial=0.0))
    gap = float(np.abs(expected.astype(np.float64) - other).max(initial=0.0))
    return gap / largest if largest else gap
