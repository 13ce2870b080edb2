"""How good a classifier is on some data, in evaluation mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

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
    num_samples: int | None = None,
) -> Evaluation:
    """Return the mean loss and the number of correct samples, in evaluation mode, no gradients.

    Args:
        model: the model; its mode is what it was afterwards.
        batches: what to evaluate it on, with labels `[n]`.
        loss_fn: the loss, as a mean over the samples.
        device: where the batches are moved.
        precision: see `train_epoch`.
        num_samples: how many samples count; None for all. Those after them are computed in vain.

    Raises:
        WrongArgument: there are no batches.
    """
    # Sums stay on the device: to ask for each would have it wait for every batch.
    total = torch.zeros((), device=device)
    num_correct = torch.zeros((), dtype=torch.int64, device=device)
    num_seen = num_counted = 0
    with evaluating(model):
        for inputs, labels in batches:
            num_seen += len(labels)
            left = len(labels) if num_samples is None else num_samples - num_counted
            labels = labels.to(device, non_blocking=True)[:left]
            with computing_in(precision, device):
                outputs = model(inputs.to(device, non_blocking=True))[:left]
                if len(labels):
                    total += loss_fn(outputs, labels).float() * len(labels)
            num_correct += (outputs.argmax(dim=1) == labels).sum()
            num_counted += len(labels)
    if not num_seen:
        raise WrongArgument("there is nothing to evaluate on: no batches")
    return Evaluation(total.item() / max(num_counted, 1), int(num_correct), num_counted)


def joined(parts: Iterable[Evaluation]) -> Evaluation:
    """Return how good a model is on samples that several processes have evaluated."""
    rows = list(parts)
    num_samples = sum(item.num_samples for item in rows)
    total = sum(item.loss * item.num_samples for item in rows)
    return Evaluation(total / num_samples, sum(item.num_correct for item in rows), num_samples)


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
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: str | torch.device = "cpu",
    num_samples: int | None = None,
) -> Answers:
    """Return what a classifier says of each sample.

    Args:
        model: the model; its mode is what it was afterwards.
        batches: what to ask it.
        device: where the batches are moved.
        num_samples: how many answers to return; None for all.

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
    return Answers(*(torch.cat(column)[:num_samples] for column in zip(*rows, strict=True)))


def interleaved(parts: Sequence[Answers]) -> Answers:
    """Return the answers in the order of the samples, of which each part has every so many-th."""
    columns = []
    for field in fields(Answers):
        taken = [getattr(part, field.name) for part in parts]
        column = taken[0].new_empty(sum(map(len, taken)))
        for place, part in enumerate(taken):
            column[place :: len(parts)] = part
        columns.append(column)
    return Answers(*columns)
