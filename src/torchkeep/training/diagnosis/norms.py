"""The gradients of a training while it runs: too large, next to nothing, not finite."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from statistics import median

import torch

from torchkeep.checkpointing.state.sharded import whole_of
from torchkeep.training.diagnosis.findings import Finding, listed
from torchkeep.wording import counted

_EXPLODING = 1e4
"""A norm of all gradients that is too large by itself."""
_EXPLODING_TIMES = 100
"""So many times the usual norm is too large, ..."""
_EXPLODING_LEAST = 10
"""... if it is above this one."""
_VANISHING = 1e-7
"""A norm of all gradients with which nothing moves."""


class Norms:
    """The norms of gradients, in the steps in which they are looked at.

    Attributes:
        largest: the largest of this epoch, by the parameters that had a gradient.
        has_looked: whether they were looked at in this epoch.
    """

    def __init__(self) -> None:
        self._totals: list[float] = []
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget what was seen of each parameter; what is usual of all is kept."""
        self.largest: dict[str, float] = {}
        self.has_looked = False

    def look(
        self, trainable: Mapping[str, torch.Tensor], step: int, *, loss: float, scale: float
    ) -> list[Finding]:
        """Return what is wrong with the gradients that are there.

        Args:
            trainable: the parameters by name.
            step: the step's number.
            loss: that of the step before.
            scale: what the loss was multiplied with; see `Watch.after_backward`.
        """
        gradients = {
            name: item.grad
            for name, item in trainable.items()
            if item.grad is not None and item.grad.layout == torch.strided
        }
        self.has_looked = True
        if not gradients:
            return []
        # Of what is sharded all ranks ask for the norms at once.
        norms = whole_of(
            torch.stack([torch.linalg.vector_norm(x).float() for x in gradients.values()])
        )
        sizes = dict(zip(gradients, (norm / scale for norm in norms.tolist()), strict=True))
        if bad := [name for name, size in sizes.items() if not isfinite(size)]:
            return [] if scale != 1.0 else [_not_finite(bad, step)]
        for name, size in sizes.items():
            self.largest[name] = max(size, self.largest.get(name, 0.0))
        total = sum(size * size for size in sizes.values()) ** 0.5
        usual = median(self._totals[-20:]) if len(self._totals) >= 4 else None
        self._totals.append(total)
        return _of_total(total, usual, step, loss)


def _not_finite(names: list[str], step: int) -> Finding:
    text = f"step {step}: {counted(len(names), 'gradient')} not finite, of {listed(names)}"
    advice = "Lower the rate, clip_grad_norm_, or look with autograd.detect_anomaly()."
    return Finding("gradient-values", "error", text, advice)


def _of_total(total: float, usual: float | None, step: int, loss: float) -> list[Finding]:
    is_jump = usual is not None and total > max(_EXPLODING_TIMES * usual, _EXPLODING_LEAST)
    where = f"step {step}: the norm of all gradients is {total:.3g}"
    if total > _EXPLODING or is_jump:
        text = where if usual is None else f"{where}, and was {usual:.3g}"
        advice = "Lower the rate, use clip_grad_norm_, or a warm-up."
        return [Finding("exploding-gradient", "warning", text, advice)]
    if total < _VANISHING and loss > 0.05:
        text = f"{where}, and the loss {loss:.3g}: nothing moves any more"
        advice = "Look for saturated outputs and dead units; try gradients() on a batch."
        return [Finding("vanishing-gradient", "warning", text, advice)]
    return []
