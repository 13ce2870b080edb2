"""When a run is to be saved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Schedule:
    """What is due, and whether there is anything to save."""

    every_steps: int | None
    """Save after so many steps; None for never."""
    every_epochs: int | None
    """Save after so many epochs; None for never."""
    is_due: bool = False
    """Whether a checkpoint is to be made as soon as the loop allows it."""
    is_saved: bool = True
    """Whether nothing has come since the last one."""

    def count_step(self, number: int) -> None:
        """Note that a step is finished, the so many-th of the run."""
        self.is_saved = False
        if self.every_steps and number % self.every_steps == 0:
            self.is_due = True

    def count_epoch(self, number: int) -> None:
        """Note that an epoch is finished."""
        self.is_saved = False
        if self.every_epochs and number % self.every_epochs == 0:
            self.is_due = True

    def note_change(self) -> None:
        """Note that something came, or that what was thought saved is not."""
        self.is_saved = False

    def note_save(self) -> None:
        """Note that all is saved, or on its way."""
        self.is_saved = True
        self.is_due = False

    def ask_again(self) -> None:
        """Note that a checkpoint was given up."""
        self.is_saved = False
        self.is_due = True
