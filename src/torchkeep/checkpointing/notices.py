"""What a run says by itself, without being asked.

What the program had better do otherwise is a warning. What befalls the run goes to the logger
`torchkeep`, which Python shows on stderr unless the program has other plans for it.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchkeep.checkpointing.runs.checkpoints import Checkpoint
from torchkeep.errors import EXIT_PREEMPTED
from torchkeep.wording import printable

_LOGGER = logging.getLogger("torchkeep")

_NUMBER = re.compile(r"\d+")


class Notices:
    """Says what is to be said about one run."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def inexact(self, checkpoint: Path, reasons: Iterable[str]) -> None:
        """Tell that a resume would be refused, while it can still be mended; each reason once."""
        told = {_NUMBER.sub("", reason): reason for reason in reasons}
        new = [reason for kind, reason in told.items() if kind not in self._said]
        if new:
            self._said.update(told)
            _warn(
                f"{checkpoint.name} is no exact checkpoint, and a resume from it needs "
                f"allow_inexact=True: {'; '.join(new)}"
            )

    def given_up(self, names: Sequence[str]) -> None:
        """Tell that parameters were changed by hand while they were copied."""
        more = f" and {len(names) - 1} more" * (len(names) > 1)
        _warn(
            f"{_shown(names[0])}{more} changed between two steps of the optimizer while a "
            "checkpoint was made, which was given up; another one follows, and from now on these "
            "are copied at once"
        )

    def no_best(self, metric: str) -> None:
        """Tell at the end that nothing was kept as the best."""
        _warn(
            f"keep_best is for {metric!r}, and no epoch had that: no checkpoint was kept as "
            f"the best. Call metrics({metric}=...) within the epoch's body."
        )

    def no_steps(self) -> None:
        """Tell that the loop does not count its steps."""
        _warn(
            "step() was not called in two epochs: none of their batches count as finished; "
            "call it once after each optimizer.step()"
        )

    def same_samples(self, num_ranks: int) -> None:
        """Tell that several ranks do the work of one."""
        _warn(
            f"all {num_ranks} ranks trained on the same samples, in the same order: give the "
            "loader a torch.utils.data.DistributedSampler, so that each has its own"
        )

    def skipped(self, checkpoint: Checkpoint, damaged: Sequence[Checkpoint]) -> None:
        """Tell that the run goes on from an older checkpoint than there is."""
        for item in damaged:
            problem = printable(item.problem)
            _LOGGER.warning("%s is damaged and was skipped: %s", item.path, problem)
        if damaged:
            _LOGGER.warning("The run goes on from %s, step %s", checkpoint.path, checkpoint.step)

    def goes_on_inexactly(self, checkpoint: Checkpoint, reasons: Sequence[str]) -> None:
        """Tell that the run goes on, with consent, and not bit for bit."""
        if reasons:
            _LOGGER.warning(
                "The run goes on from %s, and not bit for bit: %s",
                checkpoint.path,
                printable("; ".join(reasons)),
            )

    def preempted(self, signal: str, checkpoint: Path | None) -> None:
        """Tell why the program ends now.

        Args:
            signal: the signal that asked for it.
            checkpoint: where the run goes on; None if it had not begun.
        """
        place = f"saved as {checkpoint}" if checkpoint else "where it began"
        text = "%s: the run is %s, and ends with exit code %s; to go on, start it again"
        _LOGGER.warning(text, signal, place, EXIT_PREEMPTED)


def _warn(text: str) -> None:
    """Warn at the program's own line, wherever it called us from."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(text, stacklevel=level)


_OURS = "torchkeep.checkpointing."


def _shown(name: str) -> str:
    """Return a tensor's name in a state as its owner would call it.

    >>> _shown("objects/model/state/state_dict/fc.bias")
    'model/fc.bias'
    """
    return name.removeprefix("objects/").replace("/state/state_dict/", "/", 1)
