"""Unfreezing a model part by part, on a schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from torchkeep.errors import WrongArgument
from torchkeep.training.surgery.freezing import (
    refuse_idle,
    refuse_number,
    unfreeze,
    unfreeze_stages,
)
from torchkeep.training.surgery.rates import parameter_groups
from torchkeep.training.surgery.stages import stages

Schedule = Mapping[int, int | str | Iterable[str]]
"""From an epoch to what is trainable from then on: that many of the model's last `stages`, or a
pattern or several, as `unfreeze` takes them. It is added to what the epochs before unfroze."""


def check_schedule(model: nn.Module, schedule: Schedule) -> None:
    """Make sure that a schedule can be followed to its end, before training begins.

    Raises:
        WrongArgument: an epoch is negative, a pattern matches nothing, or the model has fewer
            stages.
    """
    num_stages = len(stages(model))
    for epoch, what in schedule.items():
        if epoch < 0:
            raise WrongArgument(f"the schedule has an epoch {epoch}; the first is 0")
        if isinstance(what, int):
            refuse_number(model, what, num_stages)
        else:
            refuse_idle(model, _patterns(what))


def unfreeze_at(
    model: nn.Module,
    epoch: int,
    schedule: Schedule,
    optimizer: Optimizer,
    *,
    scheduler: Any = None,
    **rates: Any,
) -> tuple[str, ...]:
    """Unfreeze what is due, add it to the optimizer, and return the added parameters' names.

    Call it at the beginning of each epoch's body, before `model.train()`. All entries up to `epoch`
    are carried out, and a parameter that the optimizer has is never added again; so a run that
    starts anew within a later epoch, and whose `Checkpointer` has put the optimizer's groups back,
    gets to the same place.

    Where a scheduler has changed the optimizer's learning rate by a factor, the new groups begin
    with that factor.

    Args:
        model: the model, frozen before the optimizer was made.
        epoch: the epoch that begins, counted from 0.
        schedule: what becomes trainable when.
        optimizer: what trains it. If it has all parameters (`parameter_groups(...,
            is_complete=True)`), nothing is added.
        scheduler: the scheduler of the learning rate, if there is one: it is told of the new
            groups. One that steps by batches, `OneCycleLR` or `CyclicLR`, can't learn of them.
        rates: `lr` and what else `parameter_groups` takes, for the groups that are added. By
            default the lowest learning rate that a group of the optimizer began with, and the
            optimizer's default weight decay.

    Raises:
        WrongArgument: as `check_schedule`, or the scheduler can't have new groups.
    """
    check_schedule(model, schedule)
    for due in sorted(key for key in schedule if key <= epoch):
        what = schedule[due]
        if isinstance(what, int):
            unfreeze_stages(model, what)
        else:
            unfreeze(model, _patterns(what))
    present = {id(item) for group in optimizer.param_groups for item in group["params"]}
    names = {id(item): name for name, item in model.named_parameters() if item.requires_grad}
    added = tuple(name for key, name in names.items() if key not in present)
    if added:
        _refuse_scheduler(scheduler)
        for group in _groups(model, optimizer, present, rates):
            group["name"] = f"{group['name']} (epoch {epoch})"
            optimizer.add_param_group(group)
    if scheduler is not None:
        _extend(scheduler, optimizer)
    return added


def _patterns(what: str | Iterable[str]) -> tuple[str, ...]:
    return (what,) if isinstance(what, str) else tuple(what)


def _groups(
    model: nn.Module, optimizer: Optimizer, present: set[int], rates: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the groups of what the optimizer lacks, at the share that schedulers have left."""
    first = optimizer.param_groups[0]
    base = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    given = {"lr": min(map(float, base)), "weight_decay": optimizer.defaults.get("weight_decay", 0)}
    groups = []
    for group in parameter_groups(model, **(given | rates)):
        group["params"] = [item for item in group["params"] if id(item) not in present]
        if "initial_lr" in first:
            group["initial_lr"] = group["lr"]
            if first["initial_lr"]:
                group["lr"] *= float(first["lr"] / first["initial_lr"])
        groups.append(group)
    return [group for group in groups if group["params"]]


def _refuse_scheduler(scheduler: Any) -> None:
    inner = [scheduler, *getattr(scheduler, "_schedulers", ())]
    for item in inner:
        if type(item).__name__ in ("OneCycleLR", "CyclicLR"):
            raise WrongArgument(
                f"{type(item).__name__} can't have parameter groups that come later",
                advice="Build the optimizer with parameter_groups(..., is_complete=True).",
            )


def _extend(scheduler: Any, optimizer: Optimizer) -> None:
    """Have a scheduler, and those that it is made of, know as many groups as there are."""
    for item in getattr(scheduler, "_schedulers", ()):
        _extend(item, optimizer)
    for attribute in ("base_lrs", "lr_lambdas", "_last_lr"):
        known = vars(scheduler).get(attribute)
        if isinstance(known, list) and known:
            for group in optimizer.param_groups[len(known) :]:
                rate = group["lr"] if attribute == "_last_lr" else group.get("initial_lr")
                known.append(known[-1] if attribute == "lr_lambdas" else rate)
