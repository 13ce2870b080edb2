"""Parameter groups: how fast which part of a model learns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.matching.patterns import covers
from torchkeep.training.surgery.stages import stages

_NO_DECAY = "*token *pos_embed* *position_embedding* *relative_position_bias_table".split()
"""Parameters of more than one dimension that are no weight matrices."""


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    decay: float = 1.0,
    weight_decay: float = 0.0,
    head_lr: float | None = None,
    no_weight_decay: Iterable[str] = (),
    is_complete: bool = False,
) -> list[dict[str, Any]]:
    """Return the groups of the trainable parameters, for any of PyTorch's optimizers.

    Each has `params`, `lr`, `weight_decay` and a `name` of its own. A part's learning rate is
    `lr * decay ** depth`, `depth` being its distance from the end in `stages`, whatever of them is
    frozen. With a `decay` of 1 there are no more than body and head.

    Biases, norms, and all else of one dimension have no weight decay; nor have tokens, tables of
    positions, and what the model says (timm's `no_weight_decay`).

    Args:
        model: the model.
        lr: the learning rate of the last part.
        decay: by what it shrinks from one part to the one before it; 0.65 to 0.9 are usual for
            transformers.
        weight_decay: the weight decay of weight matrices.
        head_lr: the learning rate of the head, if not `lr`.
        no_weight_decay: further names of modules or parameters, or patterns, without weight decay.
        is_complete: take the frozen parameters as well. An optimizer leaves alone what has no
            gradient, and needs no new group when it is unfrozen.

    Raises:
        WrongArgument: there is nothing to train, a number is out of range, or the model has no
            head for `head_lr`.
    """
    _refuse_numbers(lr=lr, head_lr=head_lr, weight_decay=weight_decay)
    if not 0.0 < decay <= 1.0:
        raise WrongArgument(f"decay has to be above 0 and at most 1, not {decay}")
    parts = stages(model)
    if head_lr is not None and not (parts and parts[-1].name == "head"):
        raise WrongArgument(
            f"this {type(model).__name__} has no head that could have a learning rate of its own",
            advice="Leave head_lr out.",
        )
    without = {*no_weight_decay, *_NO_DECAY, *_said(model)}
    parameters = dict(model.named_parameters())
    groups: dict[str, dict[str, Any]] = {}
    for depth, part in enumerate(reversed(parts)):
        is_head = part.name == "head"
        rate = head_lr if is_head and head_lr is not None else lr * decay**depth
        label = part.name if is_head or decay < 1.0 else "body"
        for name in part.parameters:
            item = parameters[name]
            if item.requires_grad or is_complete:
                is_plain = _is_plain(name, item, without)
                title = f"{label}, no weight decay" if is_plain and weight_decay else label
                made = {"params": [], "lr": rate, "weight_decay": 0.0 if is_plain else weight_decay}
                groups.setdefault(title, {**made, "name": title})["params"].append(item)
    if not groups:
        raise WrongArgument(
            f"nothing of this {type(model).__name__} is trainable",
            advice="Unfreeze something, or pass is_complete=True.",
        )
    return list(groups.values())


def _said(model: nn.Module) -> set[str]:
    said = getattr(model, "no_weight_decay", None)
    return {str(name) for name in said()} if callable(said) else set()


def _is_plain(name: str, parameter: nn.Parameter, without: set[str]) -> bool:
    is_small = parameter.dim() <= 1 or name.endswith("bias")
    return is_small or any(covers(pattern, name) for pattern in without)


def _refuse_numbers(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 0.0 <= number < float("inf"):
            raise WrongArgument(f"{name} has to be a number from 0 on, not {number}")
