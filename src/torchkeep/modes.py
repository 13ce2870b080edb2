"""Evaluation and training mode, put back afterwards exactly as they were.

`model.eval()` switches Dropout and BatchNorm and nothing else: gradients are still recorded.
`model.train()` afterwards would also wake what was deliberately asleep, such as a frozen
BatchNorm, so every submodule gets its own flag back.

The flags are the model's, and every thread sees them; whether gradients are recorded is a matter of
the thread that runs the block, as in PyTorch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module, *, inference: bool = False) -> Iterator[None]:
    """Put `model` into evaluation mode and record no gradients, until the block ends.

    Every module that was in the model when the block began gets its own mode back, whether it is
    still there or not; one that came meanwhile keeps the mode it has.

    Args:
        model: the model, wrapped or not.
        inference: use `torch.inference_mode`, which is faster. What is computed in the block can
            then never be part of a computation that records gradients.
    """
    without_gradients = torch.inference_mode() if inference else torch.no_grad()
    with _mode(model, is_training=False), without_gradients:
        yield


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put `model` into training mode and record gradients, until the block ends.

    That holds within `no_grad` and `inference_mode`, too. Modes are put back as by `evaluating`.
    """
    with _mode(model, is_training=True), torch.inference_mode(mode=False), torch.enable_grad():
        yield


@contextlib.contextmanager
def _mode(model: nn.Module, *, is_training: bool) -> Iterator[None]:
    before, modes = model.training, _modes(model)
    try:
        model.train(is_training)
        yield
    finally:
        newcomers = _modes(model)
        try:
            # A module may do more in `train` than to set the flag: LoRA merges and splits there.
            model.train(before)
        finally:
            for module, mode in [*newcomers, *modes]:
                module.training = mode


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]
