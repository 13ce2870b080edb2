"""Whether a model can learn one batch by heart: the shortest test that everything is connected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn
from torch.nn import functional

from torchkeep.errors import WrongArgument
from torchkeep.modes import training
from torchkeep.training.diagnosis.findings import Finding
from torchkeep.training.diagnosis.trial import bare, to_model, trial
from torchkeep.training.loop import Loss
from torchkeep.wording import counted


@dataclass(frozen=True, slots=True)
class OneBatch:
    """How the loss on one batch went while a copy was trained on it."""

    losses: tuple[float, ...]
    """Before each step, and after the last one."""
    rate: float
    """The learning rate, of Adam, that was best."""
    findings: tuple[Finding, ...]
    """One error if the loss did not halve at any rate; else empty."""


def overfit_one_batch(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_steps: int = 50,
    rates: Sequence[float] = (1e-3, 1e-2, 1e-1, 1e-4),
    loss_fn: Loss = functional.cross_entropy,
) -> OneBatch:
    """Train a deep copy on one batch, and return how its loss went: it must halve.

    The model, its statistics and all generators stay exactly as they were. What is frozen stays
    frozen. It ends as soon as the loss has halved.

    Args:
        model: the model; at least one parameter is trainable.
        inputs: a batch `[n, ...]`, of few samples, wherever it is.
        labels: `[n]`.
        num_steps: steps at most, per rate.
        rates: learning rates that are tried in turn, until one does.
        loss_fn: what is trained with.

    Raises:
        WrongArgument: no parameter is trainable, or the model can't be copied.
    """
    if not any(item.requires_grad for item in model.parameters()):
        raise WrongArgument(
            "nothing of the model is trainable", advice="Unfreeze at least its head."
        )
    curves = {}
    for rate in rates:
        curves[rate] = _learn(model, inputs, labels, num_steps, rate, loss_fn)
        if _has_halved(curves[rate]):
            return OneBatch(tuple(curves[rate]), rate, ())
    best = min(curves, key=lambda item: min(filter(isfinite, curves[item]), default=float("inf")))
    return OneBatch(tuple(curves[best]), best, (_finding(curves[best], best, len(labels)),))


def _learn(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    num_steps: int,
    rate: float,
    loss_fn: Loss,
) -> list[float]:
    losses = []
    with trial(bare(model)) as copied, training(copied):
        there, answers = to_model(copied, inputs, labels)
        optimizer = torch.optim.Adam((p for p in copied.parameters() if p.requires_grad), lr=rate)
        for _ in range(num_steps + 1):
            loss = loss_fn(copied(there), answers)
            losses.append(loss.item())
            if _has_halved(losses) or not isfinite(losses[-1]) or not loss.requires_grad:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return losses


def _has_halved(losses: Sequence[float]) -> bool:
    return losses[-1] <= losses[0] / 2 and isfinite(losses[0])


def _finding(losses: Sequence[float], rate: float, number: int) -> Finding:
    places = [index * (len(losses) - 1) // 7 for index in range(8)]
    curve = ", ".join(f"{losses[place]:.3g}" for place in dict.fromkeys(places))
    text = (
        f"the loss on one batch of {counted(number, 'sample')} did not halve in "
        f"{counted(len(losses) - 1, 'step')} of Adam at {rate:g}, the best rate: {curve}"
    )
    advice = (
        "Whatever can't be learnt by heart can't be learnt at all: look at labels and inputs side "
        "by side, at the loss, and at what is frozen or cut off from it."
    )
    return Finding("one-batch", "error", text, advice)
