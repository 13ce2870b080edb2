"""How good a classifier is on some data, in evaluation mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from torchkeep.errors import WrongArgument
from torchkeep.modes import evaluating
from torchkeep.training.loop import Batch, Loss, computing_in


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


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss_fn: Loss = functional.cross_entropy,
    device: str | torch.device = "cpu",
    precision: str = "float32",
) -> Evaluation:
    """Return the mean loss and the number of correct samples, in evaluation mode, no gradients.

    Args:
        model: the model; its mode is what it was afterwards.
        batches: what to evaluate it on, with labels `[n]`.
        loss_fn: the loss, as a mean over the samples.
        device: where the batches are moved.
        precision: see `train_epoch`.

    Raises:
        WrongArgument: there are no batches.
    """
    # Sums stay on the device: to ask for each would have it wait for every batch.
    total = torch.zeros((), device=device)
    num_correct = torch.zeros((), dtype=torch.int64, device=device)
    num_samples = 0
    with evaluating(model):
        for inputs, labels in batches:
            labels = labels.to(device, non_blocking=True)
            with computing_in(precision, device):
                outputs = model(inputs.to(device, non_blocking=True))
                total += loss_fn(outputs, labels).float() * len(labels)
            num_correct += (outputs.argmax(dim=1) == labels).sum()
            num_samples += len(labels)
    if not num_samples:
        raise WrongArgument("there is nothing to evaluate on: no batches")
    return Evaluation(total.item() / num_samples, int(num_correct), num_samples)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a classifier said of each sample, in the order of the samples; all are `[n]`."""

    labels: torch.Tensor
    """What is right."""
    predicted: torch.Tensor
    """What it said."""
    probability: torch.Tensor
    """How sure it was, from 0 to 1."""
    loss: torch.Tensor
    """How wrong it was: the negative logarithm of the probability of what is right."""

    def confusion(self, num_classes: int) -> list[list[int]]:
        """Return how often what is right (the row) was taken for what (the column)."""
        places = self.labels * num_classes + self.predicted
        counts = torch.bincount(places, minlength=num_classes * num_classes)
        table: list[list[int]] = counts.view(num_classes, num_classes).tolist()
        return table

    def worst(self, count: int) -> list[int]:
        """Return which samples it was most wrong of, among those that it had wrong."""
        wrong = (self.labels != self.predicted).nonzero().flatten()
        order = self.loss[wrong].argsort(descending=True)
        return [int(at) for at in wrong[order[:count]]]


def answers(
    model: nn.Module, batches: Iterable[Batch], *, device: str | torch.device = "cpu"
) -> Answers:
    """Return what a classifier says of each sample.

    Raises:
        WrongArgument: there are no batches.
    """
    rows: list[tuple[torch.Tensor, ...]] = []
    with evaluating(model):
        for inputs, labels in batches:
            scores = model(inputs.to(device)).float().log_softmax(dim=1).cpu()
            best, predicted = scores.max(dim=1)
            right = scores.gather(1, labels[:, None]).flatten()
            rows.append((labels, predicted, best.exp(), -right))
    if not rows:
        raise WrongArgument("there is nothing to evaluate on: no batches")
    return Answers(*(torch.cat(column) for column in zip(*rows, strict=True)))
