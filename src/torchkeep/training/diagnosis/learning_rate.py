"""Which learning rate a model takes: a range test.

The rate grows from step to step, until the loss does. Source: Smith, "Cyclical Learning Rates for
Training Neural Networks", 2017 (arXiv:1506.01186), section 3.3; the smoothing and the steepest
descent as in fastai.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from torchkeep.errors import WrongArgument
from torchkeep.modes import training
from torchkeep.training.diagnosis.findings import Finding
from torchkeep.training.diagnosis.trial import bare, to_model, trial
from torchkeep.training.loop import Batch, Loss

_SMOOTHING = 0.9
"""What of the mean loss stays at each step."""
_DIVERGED = 3.0
"""The test ends when the smoothed loss is so many times its least."""
_FALLEN = 0.9
"""A loss that fell by less than to this share of the first says nothing about rates."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """How the loss went while the rate grew."""

    rates: tuple[float, ...]
    """The learning rate of each step, of the optimizer's group with the largest."""
    losses: tuple[float, ...]
    """The loss before each step."""
    smoothed: tuple[float, ...]
    """A running mean of it."""
    suggestion: float | None
    """A rate to begin with, or None if the loss fell at none."""
    highest: float | None
    """The rate at which the smoothed loss was least: above it training gets worse."""
    lowest: float | None
    """The rate at which the loss had fallen by a tenth of what it fell in all."""


def find_learning_rate(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    *,
    loss_fn: Loss = functional.cross_entropy,
    lowest: float = 1e-6,
    highest: float = 1.0,
    num_steps: int = 100,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> RateCurve:
    """Return a model's losses at growing learning rates, and a suggestion.

    A deep copy of the model and of the optimizer is trained. Both stay exactly as they were, and
    so do all generators, those of the loader included. Parameter groups keep their ratio.

    Args:
        model: the model.
        optimizer: its optimizer.
        batches: walked over as often as needed.
        loss_fn: what is trained with.
        lowest: the rate of the first step.
        highest: the rate of the last one.
        num_steps: how many steps there are between, evenly on a logarithmic scale.
        progress: is called with the steps that were made, and with how many there are.

    Raises:
        WrongArgument: there are no batches, the range is none, the optimizer's parameters are not
            the model's, or they can't be copied.
    """
    if not 0 < lowest < highest or num_steps < 10:
        raise WrongArgument(
            f"a range test from {lowest:g} to {highest:g} in {num_steps} steps is none",
            advice="Rates are positive and grow, in ten steps at least.",
        )
    model = bare(model)
    held = {id(item) for group in optimizer.param_groups for item in group["params"]}
    if not held & {id(item) for item in model.parameters()}:
        raise WrongArgument(
            "the optimizer holds no parameter of the model",
            advice="Make it from this very model, after its head was replaced.",
        )
    rates = [lowest * (highest / lowest) ** (n / (num_steps - 1)) for n in range(num_steps)]
    with trial((model, optimizer), batches) as (copied, its_optimizer), training(copied):
        losses = []
        for loss in _test(copied, its_optimizer, batches, rates, loss_fn):
            losses.append(loss)
            progress(len(losses), num_steps)
    return _curve(rates[: len(losses)], losses)


def _test(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    rates: Sequence[float],
    loss_fn: Loss,
) -> Iterator[float]:
    """Yield the loss of each step, until it grows beyond all measure."""
    ratios = _ratios(optimizer)
    losses: list[float] = []
    for rate, (inputs, labels) in zip(rates, _endless(batches), strict=False):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * ratio
        inputs, labels = to_model(model, inputs, labels)
        loss = loss_fn(model(inputs), labels)
        losses.append(loss.item())
        if not isfinite(losses[-1]):
            return
        yield losses[-1]
        smoothed = _smoothed(losses)
        if len(losses) > 10 and smoothed[-1] > _DIVERGED * min(smoothed):
            return
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _ratios(optimizer: Optimizer) -> list[float]:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    largest = max(rates)
    return [rate / largest if largest else 1.0 for rate in rates]


def _endless(batches: Iterable[Batch]) -> Iterator[Any]:
    while True:
        is_empty = True
        for batch in batches:
            is_empty = False
            yield batch
        if is_empty:
            raise WrongArgument(
                "there are no batches left to try rates on",
                advice="Give it a loader or a list, which can be walked over again.",
            )


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Return a running mean, corrected for that it begins at zero."""
    mean, found = 0.0, []
    for number, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        found.append(mean / (1 - _SMOOTHING**number))
    return found


def _curve(rates: Sequence[float], losses: Sequence[float]) -> RateCurve:
    smoothed = _smoothed(losses)
    suggestion = highest = lowest = None
    if len(smoothed) > 10:
        best = min(range(len(smoothed)), key=smoothed.__getitem__)
        start = sum(losses[:_SETTLED]) / _SETTLED
        if smoothed[best] < _FALLEN * start:
            highest = rates[best]
            fallen = start - 0.1 * (start - smoothed[best])
            first = _last_above(smoothed, fallen, best)
            suggestion = min(rates[_steepest(smoothed, first, best)], highest / 3)
            # The loss of a step shows the rates before it, and a mean lags behind by some more.
            lowest = min(rates[max(first - _LAG, 0)], suggestion)
    return RateCurve(tuple(rates), tuple(losses), tuple(smoothed), suggestion, highest, lowest)


_LAG = 5
_SETTLED = 10
"""The mean of fewer losses is told by which batches came first, and not by the rates."""


def _last_above(values: Sequence[float], bound: float, best: int) -> int:
    """Return where the loss has begun to fall for good, up to where it is least."""
    above = (index for index in range(best, 0, -1) if values[index] > bound)
    return max(next(above, 0), min(_SETTLED, best))


def _steepest(smoothed: Sequence[float], first: int, best: int) -> int:
    """Return where the loss falls fastest before its least, over nine steps."""
    slopes = {
        index: smoothed[min(index + 4, best)] - smoothed[max(index - 4, 0)]
        for index in range(first, best + 1)
    }
    return min(slopes, key=slopes.__getitem__)


def judge_learning_rate(curve: RateCurve, rate: float) -> list[Finding]:
    """Return a finding if a rate is too high or too low for what a range test saw.

    Between there is much room: half of an order of magnitude beyond is told, less isn't.

    Args:
        curve: from `find_learning_rate`.
        rate: the rate of the optimizer's group with the largest.
    """
    if curve.suggestion is None or curve.highest is None or curve.lowest is None:
        fallen = f"from {curve.losses[0]:.3g} to {min(curve.smoothed):.3g}" if curve.losses else ""
        text = f"the loss fell at no rate of {_span(curve)}: {fallen}"
        advice = "Not the rate is wrong: try overfit_one_batch, and look at labels and inputs."
        return [Finding("learning-rate", "warning", text, advice)]
    advice = f"Try {curve.suggestion:.1e}."
    if log(rate / curve.highest) > log(3):
        text = f"a rate of {rate:g} is too high: the loss is least at {curve.highest:.1e}"
        return [Finding("learning-rate", "warning", f"{text}, and grows above", advice)]
    if log(curve.lowest / rate) > log(10):
        text = f"a rate of {rate:g} is too low: below {curve.lowest:.1e} the loss hardly moves"
        return [Finding("learning-rate", "warning", text, advice)]
    return []


def _span(curve: RateCurve) -> str:
    return f"{curve.rates[0]:g} to {curve.rates[-1]:.2g}" if curve.rates else "those tried"
