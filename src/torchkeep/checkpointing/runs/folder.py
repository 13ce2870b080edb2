"""A run's folder in the hands of the one process that writes to it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torchkeep.checkpointing.layout import (
    Earlier,
    Written,
    damage,
    remove_checkpoint,
    write_part,
)
from torchkeep.checkpointing.ranks import ALONE, Ranks
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, list_checkpoints, look_at
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.checkpointing.runs.retention import Best, to_delete
from torchkeep.checkpointing.state.sharded import Part
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
        whole_model: write sharded models as one file as well.
        ranks: who trains together. All of them call each method alike.

    Attributes:
        ranks: likewise.
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
        ranks: Ranks = ALONE,
        whole_model: bool = False,
    ) -> None:
        self.path = Path(path)
        self.whole_model = whole_model
        self.ranks = ranks
        # Those who write do so beside the loop, and must not be taken for it.
        self._writers = ranks.apart()
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.durable = durable
        self.suffix = _suffix_of(form)
        self.last_saved: Path | None = None
        self.previous: Path | None = None
        self._written: Written | None = None
        self._lock: RunLock | None = None
        self._is_taken = False
        self._num_saved = 0
        # Read once: a manifest of thousands of tensors takes its time, and nobody else writes here.
        self._known: list[Checkpoint] = []

    @property
    def is_taken(self) -> bool:
        """Whether it is ours."""
        return self._is_taken

    def take(self) -> list[Checkpoint]:
        """Become its one owner, and return the checkpoints in it.

        Raises:
            CheckpointProblem: another process has it, or it can't be written to; or another rank
                does not come.
        """
        self.ranks.connect()
        self._writers.connect()
        self.ranks.each(self._check_form)
        self._known = self.ranks.first(self._take)
        self._num_saved = max((item.serial for item in self._known), default=0)
        self._is_taken = True
        return list(self._known)

    def _check_form(self) -> None:
        if self.suffix and not self.ranks.is_alone:
            raise WrongArgument(
                f"{self.ranks.size} ranks have more to keep than one file holds",
                advice='Pass format="folder"; `torchkeep convert` makes one file of a checkpoint.',
            )

    def _take(self) -> list[Checkpoint]:
        self._lock = RunLock(self.path)
        try:
            remove_temporaries(self.path)
            return list_checkpoints(self.path)
        except BaseException:
            self.release()
            raise

    def resume_from(self, checkpoint: Path, skipped: Iterable[Checkpoint]) -> None:
        """Go on from a checkpoint; those that were found damaged are no longer taken for whole."""
        self.previous = checkpoint
        found = {item.path: item for item in skipped}
        self._known = [found.get(item.path, item) for item in self._known]

    def release(self) -> None:
        """Let others have it."""
        self._is_taken = False
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def next_name(self, step: int) -> tuple[Path, int]:
        """Return a free name for a checkpoint at this step, and which save of the run it is."""
        self._num_saved += 1
        return self.ranks.first(lambda: self._free_name(step)), self._num_saved

    def _free_name(self, step: int) -> Path:
        revision = 1
        # A run may have had the other form before.
        while any((self._named(step, revision, suffix)).exists() for suffix in ("", ONE_FILE)):
            revision += 1
        return self._named(step, revision, self.suffix)

    def _named(self, step: int, revision: int, suffix: str) -> Path:
        return self.path / f"{folder_name(step, revision)}{suffix}"

    def write(
        self,
        path: Path,
        part: Part,
        facts: Mapping[str, Any],
        *,
        background: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Write what the ranks have as a checkpoint, and delete those that are no longer wanted.

        One is deleted only after the new one was read back. In the `background` all of it is done
        beside a training.

        What `check` raises on some rank, all raise, and nothing is left behind. It is called before
        anything is written, and once more when all is: an operation that was under way, and changed
        something, is counted at its end.

        Raises:
            SaveRefused: the place can't be written, or an older checkpoint not be deleted.
            CheckpointProblem: another rank has ended, or does not answer; or the checkpoint reads
                back other than it was written, and nothing was deleted.
        """
        self._writers.each(check)
        try:
            self._written = write_part(
                path,
                part,
                facts=facts,
                ranks=self._writers,
                durable=self.durable,
                background=background,
                before_naming=check,
                earlier=self._earlier(),
                whole_model=self.whole_model,
            )
        except SaveRefused as refused:
            if self.ranks.is_first and path.exists():  # all but its folder's sync was done
                self._known.append(look_at(path))
            raise SaveRefused(_final(refused.problem), advice=refused.advice) from refused
        self.last_saved = self.previous = path
        self._prune(path, self._written)

    def _earlier(self) -> Earlier:
        """Return the checkpoint to share files with."""
        written = self._written
        is_that = written is not None and written.path == self.previous
        return Earlier(self.previous, written.manifest if written and is_that else None)

    def _prune(self, newest: Path, written: Written) -> None:
        """Delete what is no longer wanted, after the newest one was read back."""
        if self._writers.first(lambda: self._note(newest, written)):
            self._read_back(newest, written)
        self._writers.first(lambda: self._delete(newest))

    def _note(self, newest: Path, written: Written) -> bool:
        """Take in the newest one; return whether there is one to delete for it."""
        self._forget(newest)  # a name that was free again
        self._known.append(look_at(newest, written.manifest))
        return bool(self._doomed())

    def _doomed(self) -> list[Checkpoint]:
        """Return the checkpoints that are no longer wanted."""
        self._known = [item for item in self._known if item.path.exists()]
        return to_delete(self._known, keep_last=self.keep_last, keep_best=self.keep_best)

    def _read_back(self, newest: Path, written: Written) -> None:
        """Have each rank read what it has written, and note what is wrong with it."""
        problems = self._writers.gathered(lambda: damage(newest, written))
        problem = next(filter(None, problems), "")
        self._known = [
            replace(item, problem=item.problem or problem) if item.path == newest else item
            for item in self._known
        ]

    def _delete(self, newest: Path) -> None:
        problem = next((item.problem for item in self._known if item.path == newest), "")
        if problem:
            raise CheckpointProblem(
                f"{newest}: the new checkpoint reads back wrong: {problem}",
                advice="Look after the disk. No older checkpoint was deleted.",
            )
        for item in self._doomed():
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
