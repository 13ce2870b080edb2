"""A run's folder in the hands of the one process that writes to it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.discovery import Checkpoint, list_checkpoints
from torchkeep.checkpointing.encoding import JSON
from torchkeep.checkpointing.layout import damage, write_encoded
from torchkeep.checkpointing.retention import Best, Candidate, to_delete
from torchkeep.checkpointing.run_lock import RunLock
from torchkeep.errors import CheckpointProblem, SaveRefused
from torchkeep.files import TEMPORARY_MARK, remove_folder, remove_temporaries
from torchkeep.formats.own.manifest import folder_name


class RunFolder:
    """Names checkpoints, writes them, and deletes those that are no longer wanted.

    Args:
        path: the folder; made when it is taken.
        keep_last, keep_best: see `Checkpointer`.
        durable: sync every checkpoint.

    Attributes:
        last_saved: the checkpoint that was written last, or None.
        damaged: checkpoints that were found damaged, though their sizes are right.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_last: int | None,
        keep_best: Best | None,
        durable: bool,
    ) -> None:
        self.path = Path(path)
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.durable = durable
        self.last_saved: Path | None = None
        self.damaged: Collection[Path] = ()
        self._lock: RunLock | None = None
        self._num_saved = 0

    @property
    def is_taken(self) -> bool:
        """Whether it is ours."""
        return self._lock is not None

    def take(self) -> list[Checkpoint]:
        """Become its one owner, and return the checkpoints in it.

        Raises:
            CheckpointProblem: another process has it, or it can't be written to.
        """
        self._lock = RunLock(self.path)
        remove_temporaries(self.path)
        checkpoints = list_checkpoints(self.path)
        self._num_saved = max((item.serial for item in checkpoints), default=0)
        return checkpoints

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def next_name(self, step: int) -> tuple[Path, int]:
        """Return a free name for a checkpoint at this step, and which save of the run it is."""
        self._num_saved += 1
        revision = 1
        while (path := self.path / folder_name(step, revision)).exists():
            revision += 1
        return path, self._num_saved

    def write(
        self,
        path: Path,
        tensors: Mapping[str, torch.Tensor],
        structure: JSON,
        facts: Mapping[str, Any],
    ) -> None:
        """Write an encoded state as a checkpoint.

        Raises:
            SaveRefused: the place can't be written.
        """
        try:
            write_encoded(path, tensors, structure, facts=facts, durable=self.durable)
        except SaveRefused as refused:
            raise SaveRefused(_final(refused.problem), advice=refused.advice) from refused
        self.last_saved = path

    def discard(self, path: Path) -> None:
        """Delete a checkpoint that was just written."""
        remove_folder(path)
        self.last_saved = None

    def prune(self) -> None:
        """Delete what is no longer wanted, after the newest one was read back.

        Raises:
            CheckpointProblem: it reads back other than it was written; nothing is deleted then.
        """
        # In the middle of an epoch the means are not those of an epoch.
        candidates = [
            Candidate(
                item.path.name,
                item.step,
                item.serial,
                is_whole=not item.problem and item.path not in self.damaged,
                metrics={} if item.batch else item.metrics,
                is_exact=not item.inexact,
            )
            for item in list_checkpoints(self.path)
        ]
        names = to_delete(candidates, keep_last=self.keep_last, keep_best=self.keep_best)
        if names and self.last_saved and (problem := damage(self.last_saved)):
            raise CheckpointProblem(
                f"{self.last_saved}: the new checkpoint reads back wrong: {problem}",
                advice="Look after the disk. No older checkpoint was deleted.",
            )
        for name in names:
            remove_folder(self.path / name)


def _final(problem: str) -> str:
    """Return a message with the names that temporaries would have got."""
    return re.sub(rf"\.(step-[-\d]+){re.escape(TEMPORARY_MARK)}\w+", r"\1", problem)
