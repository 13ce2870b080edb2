"""A run's folder in the hands of the one process that writes to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from torchkeep.checkpointing.layout import (
    Earlier,
    Written,
    remove_checkpoint,
    write_encoded,
)
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, list_checkpoints, look_at, verified
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.checkpointing.runs.retention import Best, to_delete
from torchkeep.checkpointing.state.encoding import JSON
from torchkeep.errors import CheckpointProblem, SaveRefused, WrongArgument
from torchkeep.files import TEMPORARY_MARK, remove_temporaries
from torchkeep.formats.own.manifest import ONE_FILE, folder_name


class RunFolder:
    """Names checkpoints, writes them, and deletes those that are no longer wanted.

    Args:
        path: the folder; made when it is taken.
        keep_last, keep_best: see `Checkpointer`.
        durable: sync every checkpoint.
        form: what a checkpoint is: a folder, or one `.pth`.

    Attributes:
        last_saved: the checkpoint that was written last, or None.
        previous: that, or the one that the run went on from. The next one shares files with it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep_last: int | None,
        keep_best: Best | None,
        durable: bool,
        form: Literal["folder", "pth"] = "folder",
    ) -> None:
        self.path = Path(path)
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.durable = durable
        self.suffix = _suffix_of(form)
        self.last_saved: Path | None = None
        self.previous: Path | None = None
        self._written: Written | None = None
        self._lock: RunLock | None = None
        self._num_saved = 0
        # Read once: a manifest of thousands of tensors takes its time, and nobody else writes here.
        self._known: list[Checkpoint] = []

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
        try:
            remove_temporaries(self.path)
            self._known = list_checkpoints(self.path)
        except BaseException:
            self.release()
            raise
        self._num_saved = max((item.serial for item in self._known), default=0)
        return list(self._known)

    def resume_from(self, checkpoint: Path, skipped: Iterable[Checkpoint]) -> None:
        """Go on from a checkpoint; those that were found damaged are no longer taken for whole."""
        self.previous = checkpoint
        found = {item.path: item for item in skipped}
        self._known = [found.get(item.path, item) for item in self._known]

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def next_name(self, step: int) -> tuple[Path, int]:
        """Return a free name for a checkpoint at this step, and which save of the run it is."""
        self._num_saved += 1
        revision = 1
        # A run may have had the other form before.
        while any((self._named(step, revision, suffix)).exists() for suffix in ("", ONE_FILE)):
            revision += 1
        return self._named(step, revision, self.suffix), self._num_saved

    def _named(self, step: int, revision: int, suffix: str) -> Path:
        return self.path / f"{folder_name(step, revision)}{suffix}"

    def write(
        self,
        path: Path,
        tensors: Mapping[str, torch.Tensor],
        structure: JSON,
        facts: Mapping[str, Any],
        *,
        background: bool,
        before_naming: Callable[[], None] = lambda: None,
    ) -> None:
        """Write an encoded state as a checkpoint; in the `background`, beside a training.

        What `before_naming` raises, called when all is written, leaves nothing behind.

        Raises:
            SaveRefused: the place can't be written.
        """
        try:
            self._written = write_encoded(
                path,
                tensors,
                structure,
                facts=facts,
                durable=self.durable,
                background=background,
                before_naming=before_naming,
                earlier=self._earlier(),
            )
        except SaveRefused as refused:
            if path.exists():  # all but its folder's sync was done
                self._known.append(look_at(path))
            raise SaveRefused(_final(refused.problem), advice=refused.advice) from refused
        self.last_saved = self.previous = path
        self._forget(path)  # a name that was free again
        self._known.append(look_at(path, self._written.manifest))

    def _earlier(self) -> Earlier:
        """Return the checkpoint to share files with."""
        written = self._written
        is_that = written is not None and written.path == self.previous
        return Earlier(self.previous, written.manifest if written and is_that else None)

    def prune(self) -> None:
        """Delete what is no longer wanted, after the newest one was read back.

        Raises:
            CheckpointProblem: it reads back other than it was written; nothing is deleted then.
        """
        self._known = [item for item in self._known if item.path.exists()]
        doomed = to_delete(self._known, keep_last=self.keep_last, keep_best=self.keep_best)
        newest = next((item for item in self._known if item.path == self.last_saved), None)
        if newest is not None and doomed:
            newest = verified(newest, self._written)
            self._forget(newest.path)
            self._known.append(newest)
        if newest is not None and newest.problem:
            raise CheckpointProblem(
                f"{newest.path}: the new checkpoint reads back wrong: {newest.problem}",
                advice="Look after the disk. No older checkpoint was deleted.",
            )
        for item in doomed:
            remove_checkpoint(item.path, durable=self.durable)
            self._forget(item.path)

    def _forget(self, path: Path) -> None:
        self._known = [item for item in self._known if item.path != path]


def _suffix_of(form: str) -> str:
    """Return what the names of checkpoints of a form end with."""
    suffixes = {"folder": "", "pth": ONE_FILE}
    if form not in suffixes:
        raise WrongArgument(
            f"there is no format {form!r} of checkpoints",
            advice='Pass "folder", or "pth" for one file.',
        )
    return suffixes[form]


def _final(problem: str) -> str:
    """Return a message with the names that temporaries would have got."""
    return re.sub(rf"\.(step-[-\d]+(\.pth)?){re.escape(TEMPORARY_MARK)}\w+", r"\1", problem)
