"""What is wrong with the gradients of a model, seen on a deep copy that takes a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, sqrt

import torch
from torch import nn
from torch.nn import functional

from torchkeep.modes import training
from torchkeep.training.diagnosis.findings import Finding, listed
from torchkeep.training.diagnosis.trial import bare, to_model, trial
from torchkeep.training.loop import Loss
from torchkeep.wording import counted

_NUM_TRIALS = 3
"""So many steps until a gradient of zero counts. A last layer of zeros, or a residual branch that
begins with zeros, lets nothing through in the first step and is all right after it."""
_RATE = 1e-3
_EXPLODING = 1e3
"""A norm of all gradients that no ordinary start has."""
_VANISHING = 1e-10
"""A layer's gradient as a share of the largest one's, root mean squares, that moves nothing. Where
branches begin with a scale of 1e-6 (ConvNeXt) it is 1e-8, and all is well."""
_DEAD = 0.9
"""A layer with so large a share of dead units is a finding; some are dead in many networks."""

Gradients = Mapping[str, torch.Tensor | None]
"""By the names of the trainable parameters."""


def gradients(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    loss_fn: Loss = functional.cross_entropy,
) -> list[Finding]:
    """Return what is wrong with the gradients of one batch: none, zero, dead units, too large.

    The model, its gradients and statistics, and all generators stay exactly as they were: a deep
    copy runs, in training mode. If gradients are zero, the copy takes two small steps of gradient
    descent, and only what is zero then as well is told.

    Args:
        model: the model; at least one parameter is trainable.
        inputs: a batch `[n, ...]`, wherever it is.
        labels: `[n]`.
        loss_fn: what is trained with.
    """
    with trial(bare(model)) as copied, training(copied):
        there, answers = to_model(copied, inputs, labels)
        first = _backward(copied, loss_fn(copied(there), answers))
        last, alive = first, _alive(first)
        for _ in range(_NUM_TRIALS - 1):
            if all(rows.all() for rows in alive.values()):
                break
            _descend(copied, last)
            last = _backward(copied, loss_fn(copied(there), answers))
            alive = {name: alive[name] | rows for name, rows in _alive(last).items()}
        kinds = _row_weights(copied)
    found = _missing(first)
    if bad := _not_finite(first):
        return [*found, bad]
    found += _zero(alive)
    found += _dead({name: rows for name, rows in alive.items() if name in kinds and rows.any()})
    return [*found, *_exploding(first), *_vanishing(first)]


def _backward(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    named = {name: item for name, item in model.named_parameters() if item.requires_grad}
    if not named or not loss.requires_grad:
        return dict.fromkeys(named)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def _descend(model: nn.Module, found: Gradients) -> None:
    """Take a step of which the length is known, whatever the gradients' size."""
    named = dict(model.named_parameters())
    norm = max(_norm(found), 1e-12)
    with torch.no_grad():
        for name, gradient in found.items():
            if gradient is not None:
                named[name].sub_(gradient * (_RATE / norm))


def _norm(found: Gradients) -> float:
    norms = [item.double().norm().item() for item in found.values() if item is not None]
    return sqrt(sum(norm * norm for norm in norms))


def _alive(found: Gradients) -> dict[str, torch.Tensor]:
    """Return by name which rows of a gradient are not all zero: `[out]`, or `[1]` for a vector."""
    return {
        name: item.reshape(item.shape[0] if item.ndim > 1 else 1, -1).ne(0).any(dim=1)
        for name, item in found.items()
        if item is not None and item.numel()
    }


def _row_weights(model: nn.Module) -> set[str]:
    """Return the names of weights of which a row is one unit or channel."""
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    return {
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


# --- Findings ----------------------------------------------------------------------------------


def _missing(found: Gradients) -> list[Finding]:
    names = [name for name, item in found.items() if item is None]
    if not names:
        return []
    text = (
        f"{len(names):,} of {counted(len(found), 'trainable parameter')} get no gradient, so the "
        f"loss doesn't depend on them: {listed(names)}"
    )
    advice = "Look for a part that isn't used, detach(), no_grad() or .data in the forward pass."
    return [
        Finding("no-gradient", "error" if len(names) == len(found) else "warning", text, advice)
    ]


def _not_finite(found: Gradients) -> Finding | None:
    names = [n for n, item in found.items() if item is not None and not torch.isfinite(item).all()]
    if not names:
        return None
    text = f"{counted(len(names), 'gradient')} with NaN or infinity in the first step: " + listed(
        names
    )
    advice = "Run it within torch.autograd.detect_anomaly(); look at inputs, labels and the loss."
    return Finding("gradient-values", "error", text, advice)


def _zero(alive: Mapping[str, torch.Tensor]) -> list[Finding]:
    names = [name for name, rows in alive.items() if not rows.any()]
    if not names:
        return []
    is_all = len(names) == len(alive)
    text = (
        f"the gradients of {len(names):,} of {counted(len(alive), 'trainable parameter')} are "
        f"all zero, also after {_NUM_TRIALS - 1} small steps: {listed(names)}"
    )
    advice = "Look for dead ReLUs behind them, saturated outputs, or weights of zeros on the way."
    return [Finding("zero-gradient", "error" if is_all else "warning", text, advice)]


def _dead(alive: Mapping[str, torch.Tensor]) -> list[Finding]:
    shares = {name: (~rows).sum().item() / len(rows) for name, rows in alive.items()}
    dead = [name for name, share in shares.items() if share > _DEAD and len(alive[name]) > 1]
    if not dead:
        return []
    worst = max(dead, key=lambda name: shares[name])
    number = int((~alive[worst]).sum())
    text = (
        f"in {counted(len(dead), 'layer')} more than {_DEAD:.0%} of the units get no gradient "
        f"from any sample: in {worst} {number:,} of {len(alive[worst]):,}"
    )
    advice = "Try a lower rate, a fresh initialisation of biases, or LeakyReLU."
    return [Finding("dead-units", "warning", text, advice)]


def _exploding(found: Gradients) -> list[Finding]:
    norm = _norm(found)
    if isfinite(norm) and norm <= _EXPLODING:
        return []
    largest = max(
        (name for name, item in found.items() if item is not None),
        key=lambda name: found[name].double().norm().item(),  # type: ignore[union-attr]
    )
    text = f"the gradients' norm is {norm:.3g} in the first step; the largest is that of {largest}"
    advice = "Normalise inputs, use a smaller initialisation, clip_grad_norm_, or a warm-up."
    return [Finding("exploding-gradient", "warning", text, advice)]


def _vanishing(found: Gradients) -> list[Finding]:
    """Return a warning if layers get next to nothing in the first step.

    Zero is another finding: what begins with zeros lets next to nothing through in its second step.
    """
    sizes = {
        name: item.double().square().mean().sqrt().item()
        for name, item in found.items()
        if item is not None and item.ndim > 1
    }
    largest = max(sizes.values(), default=0.0)
    names = [name for name, size in sizes.items() if 0 < size < _VANISHING * largest]
    if not names:
        return []
    least = min(names, key=lambda name: sizes[name])
    text = (
        f"the gradients of {counted(len(names), 'layer')} vanish: that of {least} is "
        f"{sizes[least]:.2g}, and the largest {largest:.2g} (root mean squares)"
    )
    advice = "Use ReLU instead of sigmoid or tanh, residual connections, or a normalisation."
    return [Finding("vanishing-gradient", "warning", text, advice)]
