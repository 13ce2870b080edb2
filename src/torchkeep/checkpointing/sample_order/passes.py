"""The walks of a run's epoch over its loaders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from torchkeep.checkpointing.sample_order.indexed import (
    IndexedPass,
    generators_of,
    has_known_indices,
)
from torchkeep.checkpointing.sample_order.walks import Pass, ReplayedPass, StatefulPass
from torchkeep.checkpointing.state.kinds import is_stateful
from torchkeep.errors import CheckpointProblem


class Passes:
    """The passes of the running epoch, in the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[Pass] = []
        self.has_leftover = False
        """Whether the last epoch ended with batches that no step finished."""
        self._saved: list[dict[str, Any]] = []
        self._generators: dict[int, list[torch.Tensor]] = {}
        self._loaders: dict[int, Iterable[Any]] = {}

    def begin(self, loader: Iterable[Any], seed: int, epoch: int) -> Pass:
        """Return the epoch's next pass: the one that the checkpoint was in, or a new one.

        What was broken off before is now over: the loop has gone on to something else.
        """
        for item in self.begun:
            item.is_over |= item.is_left
        number = len(self.begun)
        following = _open_pass(loader, (seed, epoch, number))
        for generator, state in zip(
            generators_of(loader), self._generators.pop(number, ()), strict=False
        ):
            generator.set_state(state)
        if number < len(self._saved):
            following.resume(self._saved[number])
        else:
            following.begin()
        self._loaders[number] = loader
        self.begun.append(following)
        return following

    @property
    def num_to_resume(self) -> int:
        """How many passes of the checkpoint's epoch have not begun again."""
        return max(len(self._saved) - len(self.begun), 0)

    @property
    def num_batches(self) -> int:
        """Finished batches of the epoch's first pass."""
        return self.begun[0].num_finished if self.begun else 0

    def finish_step(self) -> None:
        """Count the batches that were given so far as finished."""
        self.has_leftover = False
        for item in self.begun:
            item.finish_step()

    def end_epoch(self) -> None:
        """Forget the passes; the generators of their loaders are still watched.

        Raises:
            CheckpointProblem: the checkpoint had more passes than the epoch began again.
        """
        begun, missing = len(self.begun), self.num_to_resume
        unfinished = any(item.num_given > item.num_finished for item in self.begun)
        self.has_leftover = self.has_leftover or unfinished
        self.begun.clear()
        self._saved.clear()
        if missing:
            raise CheckpointProblem(
                f"the epoch had begun {begun + missing} passes over batches() when it was saved, "
                f"and the same epoch began {begun} now",
                advice="Resume with the loop that the run was started with, or from a checkpoint "
                "that was saved at the end of an epoch.",
            )

    def reopen(self) -> None:
        """Have the next passes go on where those of an epoch that was broken off are."""
        if self.begun:
            self.resume(self.state())

    @property
    def is_between_steps(self) -> bool:
        """Whether every batch that was given out was finished by a step."""
        return all(item.num_given == item.num_finished for item in self.begun)

    def inexact(self) -> list[str]:
        """Return why a resume from here may not be exact."""
        return [reason for item in self.begun for reason in item.inexact()]

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs."""
        generators = {
            number: [generator.get_state() for generator in generators_of(loader)]
            for number, loader in self._loaders.items()
        }
        return {
            "passes": [*(item.state() for item in self.begun), *self._saved[len(self.begun) :]],
            "generators": self._generators | generators,
            "has_leftover": self.has_leftover,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Have the next passes go on where those of `state` were."""
        self.begun.clear()
        self.has_leftover = state["has_leftover"]
        self._saved = list(state["passes"])
        self._generators = dict(state["generators"])


def _open_pass(loader: Iterable[Any], key: tuple[int, int, int]) -> Pass:
    """Return the most exact kind of pass that `loader` allows."""
    if is_stateful(loader):
        return StatefulPass(loader, key)
    if has_known_indices(loader):
        return IndexedPass(loader, key)
    return ReplayedPass(loader, key)
