"""Evaluation and training mode, put back afterwards exactly as they were.

`model.eval()` switches Dropout and BatchNorm and nothing else: gradients are still recorded.
`model.train()` afterwards would also wake what was deliberately asleep, such as a frozen
BatchNorm, so every submodule gets its own flag back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode and record no gradients, until the block ends."""
    with _modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put `model` into training mode and record gradients, until the block ends."""
    with _modes_kept(model), torch.enable_grad():
        model.train()
        yield


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
