"""Optimizers and learning rates by name.

A schedule here is a function of the share of the training that is done, and keeps nothing: what it
gives follows from the step's number, so that it goes on exactly after a resume, and a group of
parameters that joins later has the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from torchkeep.errors import WrongArgument

OPTIMIZERS: dict[str, Callable[[Iterable[Any]], Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups),
    "adam": lambda groups: torch.optim.Adam(groups),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.9),
    "nadam": lambda groups: torch.optim.NAdam(groups, decoupled_weight_decay=True),
}
"""Optimizers by name, with their usual momentum."""

WEIGHT_DECAY = {"adamw": 0.01, "nadam": 0.01, "sgd": 1e-4}
"""The usual weight decay. The others have none: theirs would be a part of an adapted gradient."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "steps": lambda done: 0.1 ** min(int(done * 3), 2),
}
"""What the learning rate is multiplied by when a share of the training is done (0 to 1)."""


def make_optimizer(name: str, groups: Iterable[Any]) -> Optimizer:
    """Return an optimizer of groups of parameters that have their learning rates.

    Raises:
        WrongArgument: there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise WrongArgument(
            f"there is no optimizer {name!r}", advice=f"Choose one of {', '.join(OPTIMIZERS)}."
        )
    return OPTIMIZERS[name](groups)


def factor(schedule: str, step: int, num_steps: int, num_warmup: int = 0) -> float:
    """Return what the learning rate is multiplied by in a step, from 0 to 1.

    Args:
        schedule: one of `SCHEDULES`.
        step: the step's number, from 0.
        num_steps: how many there are in all.
        num_warmup: for how many it rises first.

    Raises:
        WrongArgument: there is no such schedule.

    >>> [round(factor("linear", step, 5, 1), 2) for step in range(5)]
    [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if schedule not in SCHEDULES:
        raise WrongArgument(
            f"there is no schedule {schedule!r}", advice=f"Choose one of {', '.join(SCHEDULES)}."
        )
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return SCHEDULES[schedule](min(done, 1.0))


def set_rates(optimizer: Optimizer, multiplier: float) -> None:
    """Give each group the rate that it began with (its `initial_lr`), times `multiplier`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * multiplier
