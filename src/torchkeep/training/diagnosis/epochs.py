"""What the losses of the epochs tell: pure functions of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import fmean, stdev

from torchkeep.training.diagnosis.findings import Finding
from torchkeep.wording import share

_FEW_STEPS = 20
"""So few steps tell nothing yet."""
_MANY_STEPS = 100
"""So many do, in one epoch; fewer take two."""
_PATIENCE = 3
"""Epochs for which the validation loss was above its least."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What was measured in an epoch."""

    train_loss: float | None
    """The mean over its steps."""
    validation_loss: float | None = None
    """The mean per sample."""
    accuracy: float | None = None
    """The share of correct samples in validation."""
    num_samples: int = 0
    """How many were validated."""


def is_early(num_steps: int, num_epochs: int) -> bool:
    """Tell whether it is too early to judge a training."""
    return num_steps < _FEW_STEPS or (num_epochs < 2 and num_steps < _MANY_STEPS)


def loss_not_falling(
    start: Sequence[float], losses: Sequence[float], num_classes: int
) -> list[Finding]:
    """Return a warning if an epoch ends with a loss that is not below that of the start.

    What is far below `ln(num_classes)` has been learnt before, and need not fall.

    Args:
        start: the losses of the training's first steps.
        losses: those of an epoch's steps.
        num_classes: how many classes there are.
    """
    if len(losses) < 4 or not start:
        return []
    late = losses[-max(len(losses) // 4, 4) :]
    first, last = fmean(start), fmean(late)
    noise = 2 * stdev(late) / sqrt(len(late))
    is_stuck = last >= 0.98 * first - min(noise, 0.02 * first) and last > 0.7 * log(num_classes)
    if not is_stuck:
        return []
    text = (
        f"the loss does not fall: {first:.3g} in the first steps, {last:.3g} at the end of the "
        f"epoch (ln({num_classes}) = {log(num_classes):.3g})"
    )
    advice = "Try overfit_one_batch and find_learning_rate."
    if last > 1.5 * first:
        advice = "It grows: lower the learning rate to a tenth. " + advice
    return [Finding("loss-not-falling", "warning", text, advice)]


def overfitting(epochs: Sequence[Epoch]) -> list[Finding]:
    """Return a warning if the validation loss grows while that of the training falls.

    It must be a tenth above its least, and twice that of the training, and so for three epochs.
    """
    known = [
        (item.validation_loss, item.train_loss)
        for item in epochs
        if item.validation_loss is not None and item.train_loss is not None
    ]
    if len(known) <= _PATIENCE:
        return []
    best = min(range(len(known)), key=lambda index: known[index][0])
    (least, train_then), (now, train_now) = known[best], known[-1]
    above = min(loss for loss, _ in known[-_PATIENCE:])
    is_worse = best < len(known) - _PATIENCE and above > 1.1 * least and above > least + 0.05
    if not (is_worse and train_now < train_then and now > 2 * train_now):
        return []
    text = (
        f"the validation loss grew from {least:.3g} after epoch {best + 1} to {now:.3g} after "
        f"epoch {len(known)}, while that of the training fell from {train_then:.3g} to "
        f"{train_now:.3g}"
    )
    advice = (
        f"Keep the weights of epoch {best + 1}; then more images or augmentation, fewer trainable "
        "layers, weight decay, or a lower rate."
    )
    return [Finding("overfitting", "warning", text, advice)]


def far_apart(epoch: Epoch, num_classes: int) -> list[Finding]:
    """Return a warning if validation is far worse than guessing while the training is not.

    It must be three times `ln(num_classes)`, the loss of guessing, and ten times that of training.
    """
    train, val = epoch.train_loss, epoch.validation_loss
    if train is None or val is None or num_classes < 2:
        return []
    if val < 3 * log(num_classes) or val < 10 * train:
        return []
    text = (
        f"the loss is {val:.3g} in validation and {train:.3g} in training, and that of guessing "
        f"among {num_classes} classes is {log(num_classes):.3g}"
    )
    advice = (
        "BatchNorm's statistics may lag behind weights that change fast: lower the rate, or make "
        "more steps (smaller batches, more epochs). Else look whether both are prepared alike."
    )
    return [Finding("validation-loss", "warning", text, advice)]


def not_above_chance(epoch: Epoch, num_classes: int) -> list[Finding]:
    """Return a warning if the accuracy is that of guessing, within one standard error."""
    if epoch.accuracy is None or not epoch.num_samples or num_classes < 2:
        return []
    chance = 1 / num_classes
    error = sqrt(chance * (1 - chance) / epoch.num_samples)
    if epoch.accuracy > chance + min(error, chance / 4):
        return []
    text = (
        f"the accuracy in validation is {share(epoch.accuracy)} of "
        f"{epoch.num_samples:,} samples, and guessing among {num_classes} classes gives "
        f"{share(chance)}"
    )
    advice = (
        "Are training and validation preprocessed alike, and do both use one list of class names?"
    )
    return [Finding("chance", "warning", text, advice)]
