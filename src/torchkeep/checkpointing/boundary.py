"""Where a step ends on all ranks: what each has to tell the others there.

To wait there for the slowest rank would stall the training, so nobody waits: what is told at one
boundary is known at the next, when it has long arrived. All ranks learn it at the same one, and so
do the same. Alone, one knows at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import torch

from torchkeep.checkpointing.ranks import Ranks
from torchkeep.errors import CheckpointProblem


@dataclass(frozen=True, slots=True)
class Told:
    """What a rank tells, or what is true of any of them."""

    step: int = 0
    """Finished steps."""
    signal: str = ""
    """The name of a signal that asks to stop."""
    num_saves: int = 0
    """Saves that were begun."""
    is_saving: bool = False
    """Whether the last of them is under way."""


class Boundary:
    """What ranks know of each other at the end of a step.

    Args:
        ranks: who trains together.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._told = Told()
        self._answer: Callable[[], torch.Tensor] | None = None

    def cross(self, now: Told) -> Told:
        """Tell the others how things are; return how they were at the last boundary, on any rank.

        Raises:
            CheckpointProblem: the ranks are not at the same step, or one has ended.
        """
        if self._ranks.is_alone:
            return now
        before, answer = self._told, self._answer
        self._told, self._answer = now, self._ranks.send_highest(_numbers(now))
        return Told() if answer is None else self._read(before, answer().tolist())

    def _read(self, mine: Told, highest: list[int]) -> Told:
        number, is_saving, last, first = highest
        if last != -first:
            raise CheckpointProblem(
                f"rank {self._ranks.rank} is at step {mine.step}, and others from step {-first} to "
                f"{last}",
                advice="All ranks have to make the same steps: give each as many batches, with a "
                "DistributedSampler, and call step() on all.",
            )
        name = signal.Signals(number).name if number else ""
        return Told(last, name, mine.num_saves, bool(is_saving))


def _numbers(told: Told) -> torch.Tensor:
    number = signal.Signals[told.signal].value if told.signal else 0
    return torch.tensor([number, told.is_saving, told.step, -told.step])
