"""Calling what PyTorch has opened with NumPy's arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchkeep.exporting.targets.target import Arrays
from torchkeep.outputs import named_tensors


def running(call: Callable[..., Any]) -> Callable[[Arrays], Arrays]:
    """Return what runs it on arrays and gives its tensors as arrays, in their order."""

    def run(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            output = call(*(torch.from_numpy(array) for array in arrays))
            return [as_array(tensor) for _, tensor in named_tensors(output)]

    return run


def as_array(tensor: torch.Tensor) -> Any:
    """Return a tensor as an array; types that NumPy lacks, and halves, as float32."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    return tensor.contiguous().numpy()
