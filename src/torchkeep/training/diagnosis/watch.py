"""What goes wrong while a training runs, noticed by calls that cost next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite, log
from statistics import fmean
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from torchkeep.training.diagnosis.epochs import (
    Epoch,
    far_apart,
    is_early,
    loss_not_falling,
    not_above_chance,
    overfitting,
)
from torchkeep.training.diagnosis.findings import Finding
from torchkeep.training.diagnosis.movement import (
    NO_RATE,
    NOT_HELD,
    Samples,
    digests,
    frozen_moves,
    not_moving,
    rate_of,
    split,
)
from torchkeep.training.diagnosis.norms import Norms
from torchkeep.training.diagnosis.trial import bare

_NUM_START = 10
"""Steps whose losses are those of the start."""
_SURE = 4
"""So many steps move whatever has a gradient: behind a weight of 0, it comes with the second."""
_CERTAIN = (NOT_HELD, NO_RATE)
"""Why a parameter does not move in however few steps."""


class Measured(Protocol):
    """An evaluation, such as `torchkeep.training.Evaluation`."""

    @property
    def loss(self) -> float:
        """The mean loss per sample."""

    @property
    def accuracy(self) -> float:
        """The share of correct samples."""

    @property
    def num_samples(self) -> int:
        """Samples in all."""


class Watch:
    """Looks at a training while it runs, and tells what goes wrong.

    Each call returns what it has found, which is told once, and `findings` has all of it. Losses
    are looked at in every step; gradients, and samples of what is frozen, in the steps 1, 3, 7,
    15, ... and then every `every` steps; all tensors by their digests when an epoch ends.

    Args:
        model: the model, as it is trained: frozen is what is frozen now.
        optimizer: its optimizer.
        num_classes: how many classes there are.
        every: steps between two looks at the gradients.
        epochs: what an earlier process measured, where a training is gone on with.
        num_steps: the steps that it had made.
        told: what it has found, which is not told again.

    Attributes:
        findings: all that was found so far.
        epochs: what was measured in each epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        num_classes: int,
        *,
        every: int = 100,
        epochs: Iterable[Epoch] = (),
        num_steps: int = 0,
        told: Iterable[Finding] = (),
    ) -> None:
        self.findings: list[Finding] = []
        self.epochs = list(epochs)
        self._model = bare(model)
        self._optimizer = optimizer
        self._num_classes = num_classes
        self._every = every
        self._told: set[tuple[str, object]] = set(map(_key, told))
        self._start = [_start_loss(self.epochs, num_classes)] if num_steps else []
        self._losses: list[float] = []
        self._waiting: list[torch.Tensor] = []
        self._norms = Norms()
        self._num_backwards = self._num_steps = num_steps
        self._next_gradients = self._next_samples = 1
        self._trainable, self._frozen = split(self._model)
        self._begin_epoch(digests(self._trainable | self._frozen))

    def _begin_epoch(self, now: dict[str, str]) -> None:
        self._before = now
        self._samples = Samples(self._frozen)
        self._norms.begin_epoch()

    # --- Steps -----------------------------------------------------------------------------

    def after_backward(self, *, scale: float = 1.0) -> list[Finding]:
        """Look at the gradients, if it is time; call it before the optimizer's step.

        Args:
            scale: what the loss was multiplied with (`GradScaler.get_scale()`). With another one
                than 1, infinite gradients are no finding: the scaler deals with them.
        """
        self._num_backwards += 1
        if self._num_backwards < self._next_gradients:
            return []
        self._next_gradients += min(self._every, self._num_backwards + 1)
        found = self._collect()
        loss = self._losses[-1] if self._losses else 0.0
        step = self._num_backwards
        return self._new([*found, *self._norms.look(self._trainable, step, loss=loss, scale=scale)])

    def after_step(self, loss: float | torch.Tensor) -> list[Finding]:
        """Take note of a step's loss; call it after the optimizer's step.

        A tensor is not waited for on its device: it is read at the next look.

        Args:
            loss: the mean over the batch.
        """
        self._num_steps += 1
        if isinstance(loss, torch.Tensor):
            self._waiting.append(loss.detach())
        else:
            self._losses.append(loss)
            if loss - loss:  # NaN for NaN and infinity
                return self._new([self._not_finite(len(self._losses) - 1)])
        if self._num_steps < self._next_samples:
            return []
        self._next_samples += min(self._every, self._num_steps + 1)
        return self._new([*self._collect(), *self._moved(self._samples.moved())])

    def _collect(self) -> list[Finding]:
        """Read the losses that are waiting on their device."""
        if not self._waiting:
            return []
        losses = torch.stack(self._waiting).float().tolist()
        self._waiting.clear()
        num_known = len(self._losses)
        self._losses += losses
        bad = next((number for number, loss in enumerate(losses) if not isfinite(loss)), None)
        return [] if bad is None else [self._not_finite(num_known + bad)]

    def _not_finite(self, place: int) -> Finding:
        """Return the finding of a loss of this epoch, the `place`-th from 0."""
        step = self._num_steps - len(self._losses) + place + 1
        text = f"the loss of step {step} is {self._losses[place]}"
        if place:
            text += f", after {self._losses[place - 1]:.3g}"
        advice = "Go back to the last checkpoint with a lower rate; look at inputs and labels."
        return Finding("loss-values", "error", text, advice)

    # --- Epochs ----------------------------------------------------------------------------

    def before_epoch(self) -> None:
        """See anew what is frozen; call it when something was unfrozen, before the next step."""
        self._trainable, self._frozen = split(self._model)
        self._samples = Samples(self._frozen)

    def after_epoch(self, validation: Measured | None = None) -> list[Finding]:
        """Look at what moved, and at the losses; call it when an epoch and its validation ended.

        Args:
            validation: how good the model is on data that it isn't trained on.
        """
        found = self._collect()
        losses = [item for item in self._losses if isfinite(item)]
        if not (self.epochs or self._start):
            self._start = losses[:_NUM_START]
        self.epochs.append(_epoch(losses, validation))
        trainable, frozen = split(self._model)
        now = digests(trainable | frozen)
        if losses:
            found += self._movement(trainable, frozen, now)
        if not is_early(self._num_steps, len(self.epochs)):
            found += loss_not_falling(self._start, losses, self._num_classes)
            found += not_above_chance(self.epochs[-1], self._num_classes)
            found += far_apart(self.epochs[-1], self._num_classes)
        found += overfitting(self.epochs)
        self._losses, self._trainable, self._frozen = [], trainable, frozen
        self._begin_epoch(now)
        return self._new(found)

    def _movement(
        self, trainable: Iterable[str], frozen: Iterable[str], now: dict[str, str]
    ) -> list[Finding]:
        stayed = [
            name
            for name in trainable
            if name in self._trainable and now.get(name) == self._before.get(name)
        ]
        moved = [
            name
            for name in frozen
            if name in self._frozen and now.get(name) != self._before.get(name)
        ]
        causes = {name: self._cause(name) for name in stayed}
        if len(self._losses) < _SURE:
            causes = {name: cause for name, cause in causes.items() if cause in _CERTAIN}
        found = not_moving(causes, len(self._trainable), len(self._losses))
        return [*found, *self._moved(moved)]

    def _cause(self, name: str) -> str:
        """Return why a trainable parameter did not move."""
        parameter, largest = self._trainable[name], self._norms.largest
        rate = rate_of(self._optimizer, parameter)
        if rate is None:
            return NOT_HELD
        if not rate:
            return NO_RATE
        if self._norms.has_looked and name not in largest:
            return "it gets no gradient"
        if largest.get(name) == 0.0:
            return "its gradient is zero"
        return f"steps at a rate of {rate:g} are below its precision"

    def _moved(self, names: list[str]) -> list[Finding]:
        names = [name for name in names if ("frozen-moves", name) not in self._told]
        self._told |= {("frozen-moves", name) for name in names}
        return frozen_moves(names, self._num_steps)

    def _new(self, found: list[Finding]) -> list[Finding]:
        """Keep and return what was not told before; who is frozen is told by name."""
        new = []
        for item in found:
            if (key := _key(item)) not in self._told:
                self._told.add(key)
                self.findings.append(item)
                new.append(item)
        return new


def _key(found: Finding) -> tuple[str, object]:
    return found.check, found.text if found.check == "frozen-moves" else None


def _start_loss(epochs: Sequence[Epoch], num_classes: int) -> float:
    """Return about what the loss was in the first steps, which another process has seen."""
    losses = [item.train_loss for item in epochs[:1] if item.train_loss is not None]
    return max([log(num_classes), *losses])


def _epoch(losses: list[float], validation: Measured | None) -> Epoch:
    train_loss = fmean(losses) if losses else None
    if validation is None:
        return Epoch(train_loss)
    return Epoch(train_loss, validation.loss, validation.accuracy, validation.num_samples)
