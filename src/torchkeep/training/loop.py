"""One epoch of training, for a model that classifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs `[n, ...]` and labels, `[n]` or, as shares, `[n, classes]`."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From outputs `[n, classes]` and labels to a scalar."""

AUXILIARY = 0.3
"""What the loss of an auxiliary output counts, as in the paper on GoogLeNet."""

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    loss_fn: Loss = functional.cross_entropy,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    after_backward: Callable[[], object] | None = None,
    before_step: Callable[[], object] | None = None,
    after_step: Callable[[float], object] | None = None,
) -> None:
    """Train `model` on `batches`, in training mode.

    A model may return a tuple: the outputs, and auxiliary ones that training alone uses, as
    GoogLeNet, Inception v3 and distilled transformers do. Their losses count `AUXILIARY` each.

    Args:
        model: the model; frozen parts stay frozen (see `freeze`).
        batches: the epoch's batches, for instance `checkpointer.batches(loader)`.
        optimizer: holds the trainable parameters.
        loss_fn: gives the scalar to be minimised.
        device: where the batches are moved.
        precision: what the model computes in: `float32`, or `bf16` or `fp16` where that is enough
            (PyTorch's autocast); the parameters stay as they are.
        scaler: keeps gradients of fp16 from vanishing.
        accumulate: how many batches make one step of the optimizer; an epoch's last step may have
            fewer.
        clip_norm: gradients with a larger norm are made as small as this.
        memory_format: how the inputs are laid out in memory.
        after_backward: called when a step's gradients are there, as they are: look at them here.
        before_step: called before each step of the optimizer: set the learning rate here.
        after_step: called after each with the mean loss of its batches: step the checkpointer here.
    """
    model.train()
    optimizer.zero_grad()
    losses: list[torch.Tensor] = []

    def update() -> None:
        if after_backward is not None:
            after_backward()
        if before_step is not None:
            before_step()
        _step(model, optimizer, scaler, clip_norm)
        loss = torch.stack(losses).mean().item()
        losses.clear()
        if after_step is not None:
            after_step(loss)

    for inputs, labels in batches:
        inputs = inputs.to(device, memory_format=memory_format, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with computing_in(precision, device):
            loss = total_loss(model(inputs), labels, loss_fn)
        share = loss / accumulate if accumulate > 1 else loss
        (share if scaler is None else scaler.scale(share)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        if len(losses) == accumulate:
            update()
    if losses:
        update()


def total_loss(
    outputs: torch.Tensor | tuple[torch.Tensor | None, ...],
    labels: torch.Tensor,
    loss_fn: Loss = functional.cross_entropy,
) -> torch.Tensor:
    """Return the loss of what a model returned, with that of its auxiliary outputs.

    Args:
        outputs: `[n, classes]`, or a tuple of the main and the auxiliary ones; None for one that
            is switched off.
        labels: as for `loss_fn`.
        loss_fn: gives the loss of one tensor of outputs.
    """
    if not isinstance(outputs, tuple):
        return loss_fn(outputs, labels)
    main, *others = (item for item in outputs if item is not None)
    loss = loss_fn(main, labels)
    for item in others:
        loss = loss + AUXILIARY * loss_fn(item, labels)
    return loss


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
    clip_norm: float | None,
) -> None:
    if clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


def computing_in(precision: str, device: str | torch.device) -> AbstractContextManager[object]:
    """Return a context in which the model computes in this precision where that is enough."""
    if precision not in _HALVES:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_HALVES[precision])
