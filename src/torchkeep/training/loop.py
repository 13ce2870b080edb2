"""One epoch of training, and an evaluation, for a model that classifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from torchkeep.errors import WrongArgument
from torchkeep.modes import evaluating

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs `[n, ...]` and labels `[n]`."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From outputs `[n, classes]` and labels `[n]` to a scalar."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a model is on some data."""

    loss: float
    """The mean loss per sample."""
    num_correct: int
    """Samples whose highest output is their label."""
    num_samples: int
    """Samples in all."""

    @property
    def accuracy(self) -> float:
        """The share of correct samples, from 0 to 1."""
        return self.num_correct / self.num_samples


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    loss_fn: Loss = functional.cross_entropy,
    device: str | torch.device = "cpu",
    after_step: Callable[[float], object] | None = None,
) -> None:
    """Train `model` on `batches`, in training mode, one optimizer step per batch.

    Args:
        model: the model; frozen parts stay frozen (see `freeze`).
        batches: the epoch's batches, for instance `checkpointer.batches(loader)`.
        optimizer: holds the trainable parameters.
        loss_fn: gives the scalar to be minimised.
        device: where the batches are moved.
        after_step: called after each step with its loss: step the scheduler here, then the
            checkpointer.
    """
    model.train()
    for inputs, labels in batches:
        loss = loss_fn(model(inputs.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if after_step is not None:
            after_step(loss.item())


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss_fn: Loss = functional.cross_entropy,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Return the mean loss and the number of correct samples, in evaluation mode, no gradients.

    Raises:
        WrongArgument: there are no batches.
    """
    total, num_correct, num_samples = 0.0, 0, 0
    with evaluating(model):
        for inputs, labels in batches:
            outputs, labels = model(inputs.to(device)), labels.to(device)
            total += loss_fn(outputs, labels).item() * len(labels)
            num_correct += int((outputs.argmax(dim=1) == labels).sum())
            num_samples += len(labels)
    if not num_samples:
        raise WrongArgument("there is nothing to evaluate on: no batches")
    return Evaluation(total / num_samples, num_correct, num_samples)
