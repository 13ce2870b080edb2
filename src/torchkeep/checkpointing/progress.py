"""How far a run is, and what it measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from torchkeep.errors import CheckpointProblem


def as_number(value: float | torch.Tensor) -> float:
    """Return a number, or the only element of a tensor, as a float."""
    return float(value.item() if isinstance(value, torch.Tensor) else value)


Sums = dict[str, tuple[float, int]]
"""By name: a sum, and of how many values."""


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Finished optimizer steps."""
    epoch: int = 0
    """Finished epochs, which is also the number of the running one."""
    num_steps_in_epoch: int = 0
    """Finished steps of the running epoch."""
    sums: Sums = field(default_factory=dict)
    """By name: the sum of what `add` got in this epoch, and how often."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The running epoch's metrics."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch: `epoch`, `step`, means and metrics."""

    def add(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Count a finished step that measured `values`."""
        self.step += 1
        self.num_steps_in_epoch += 1
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + as_number(value), count + 1)

    def means(self) -> dict[str, float]:
        """Return the means of what `add` got in this epoch."""
        return {name: total / count for name, (total, count) in self.sums.items()}

    def latest(self) -> dict[str, float]:
        """Return the means and metrics of the running epoch, or of the last if none runs."""
        if self.num_steps_in_epoch or self.metrics or not self.history:
            return self.means() | self.metrics
        return {k: v for k, v in self.history[-1].items() if k not in ("epoch", "step")}

    def measured(self) -> tuple[Sums, dict[str, float]]:
        """Return what this rank has measured in the epoch: what `add` got, and the metrics."""
        return self.sums, self.metrics

    def join(self, measured: Sequence[tuple[Sums, dict[str, float]]]) -> None:
        """Take what all ranks have measured: means over all values, and over those that have one.

        What all have alike stays as it is, to the last bit.
        """
        for name in dict.fromkeys(name for sums, _ in measured for name in sums):
            self.sums[name] = _joined([sums[name] for sums, _ in measured if name in sums])
        for name in dict.fromkeys(name for _, metrics in measured for name in metrics):
            found = [(metrics[name], 1) for _, metrics in measured if name in metrics]
            total, count = _joined(found)
            self.metrics[name] = total / count

    def end_epoch(self) -> None:
        """Add the epoch's row to the history, and begin the next one."""
        row: dict[str, float] = {"epoch": self.epoch, "step": self.step}
        self.history.append(row | self.means() | self.metrics)
        self.epoch += 1
        self.num_steps_in_epoch = 0
        self.sums = {}
        self.metrics = {}

    def was_measured(self, metric: str) -> bool:
        """Whether a finished epoch has it."""
        return any(metric in row for row in self.history)

    def check_was_measured(self, metric: str) -> None:
        """Refuse a metric to keep the best by that no epoch had: nothing would be kept for it.

        Raises:
            CheckpointProblem: the last epoch had others.
        """
        if self.was_measured(metric):
            return
        names = sorted(self.history[-1].keys() - {"epoch", "step"})
        raise CheckpointProblem(
            f"keep_best is for {metric!r}, and the epoch's metrics are {', '.join(names)}",
            advice="Name one of them in keep_best, or give the metric to metrics().",
        )

    def state(self) -> dict[str, Any]:
        """Return the progress as plain values; `Progress(**state)` is its inverse."""
        return asdict(self)


def _joined(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Return the sum of sums, and of how many values it is."""
    if all(part == parts[0] for part in parts):
        return parts[0]
    return sum(total for total, _ in parts), sum(count for _, count in parts)
