"""Old checkpoints of a run deleted by hand, under the rules that a run itself has."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torchkeep.checkpointing.layout import remove_checkpoint
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, list_checkpoints, verified
from torchkeep.checkpointing.runs.lock import RunLock
from torchkeep.checkpointing.runs.overview import check_run, keep_best_of, statuses
from torchkeep.checkpointing.runs.retention import Best, check_best, check_counts, to_delete
from torchkeep.errors import CheckpointProblem
from torchkeep.files import remove_temporaries
from torchkeep.wording import printable


@dataclass(frozen=True, slots=True)
class Pruning:
    """What was deleted of a run, or would be."""

    run: Path
    """Its folder."""
    deleted: tuple[Checkpoint, ...]
    """Those that go, oldest first."""
    kept: tuple[Checkpoint, ...]
    """Those that stay, oldest first; every byte of them was read and is as it was written."""
    damaged: tuple[Checkpoint, ...]
    """The damaged ones that stay; each one's `problem` says what is wrong."""
    nbytes: int
    """How many bytes come free. A file that other names share does not count."""
    keep_best: Best | None
    """What the best one was kept by; None if by nothing."""
    is_done: bool
    """False for a dry run."""


def prune(
    run: str | os.PathLike[str],
    *,
    keep_last: int | None = None,
    keep_best: Best | None = None,
    damaged: bool = False,
    dry_run: bool = False,
) -> Pruning:
    """Delete old checkpoints of a run that nobody writes to.

    What stays is read first, every byte of it; one that turns out to be damaged counts for
    nothing, so that something else stays for it. Damaged ones stay where they are, as somebody may
    want to rescue a part of them.

    Args:
        run: its folder.
        keep_last: how many of the newest ones stay; None for all. Never less than one.
        keep_best: the best one by this stays, too; by default what the run itself keeps it by.
        damaged: delete the damaged ones as well.
        dry_run: only tell what would be deleted.

    Raises:
        WrongArgument: there is no such number, or no such rule.
        FileMissing, NoCheckpoint: it is not the folder of a run.
        CheckpointProblem: somebody writes to the run, or none of its checkpoints is whole.
        SaveRefused: the folder can't be written to.
    """
    check_counts(keep_last=keep_last)
    check_best(keep_best)
    folder = check_run(run)
    if dry_run:
        return _planned(folder, keep_last, keep_best, damaged)
    lock = RunLock(folder)
    try:
        remove_temporaries(folder)
        plan = _planned(folder, keep_last, keep_best, damaged)
        for item in plan.deleted:
            remove_checkpoint(item.path)
    finally:
        lock.release()
    return replace(plan, is_done=True)


def _planned(
    folder: Path, keep_last: int | None, keep_best: Best | None, with_damaged: bool
) -> Pruning:
    checkpoints = list_checkpoints(folder)
    rule = keep_best or keep_best_of(checkpoints)
    doomed, checkpoints = _doomed(checkpoints, keep_last, rule)
    broken = [item for item in checkpoints if item.problem]
    if len(broken) == len(checkpoints):
        raise CheckpointProblem(
            f"{printable(str(folder))}: every checkpoint is damaged; nothing was deleted",
            advice="Rescue what is left of them first: torchkeep inspect tells what there is.",
        )
    if with_damaged:
        doomed |= {item.path for item in broken if item.can_be_read}
    deleted = [item for item in checkpoints if item.path in doomed]
    kept = [item for item in checkpoints if item.path not in doomed]
    return Pruning(
        run=folder,
        deleted=tuple(deleted),
        kept=tuple(item for item in kept if not item.problem),
        damaged=tuple(item for item in kept if item.problem),
        nbytes=_nbytes_freed(item.path for item in deleted),
        keep_best=rule,
        is_done=False,
    )


def _doomed(
    checkpoints: list[Checkpoint], keep_last: int | None, rule: Best | None
) -> tuple[set[Path], list[Checkpoint]]:
    """Return which to delete, and the checkpoints with what reading those that stay told."""
    read: set[Path] = set()
    while True:
        doomed: set[Path] = set()
        if keep_last is not None:
            found = to_delete(checkpoints, keep_last=keep_last, keep_best=rule)
            doomed = {item.path for item in found}
        unread = {item.path for item in checkpoints if not item.problem} - doomed - read
        if not unread:
            return doomed, checkpoints
        checkpoints = [verified(item) if item.path in unread else item for item in checkpoints]
        read |= unread


def _nbytes_freed(checkpoints: Iterable[Path]) -> int:
    """Return the bytes of the files that have no name outside of these checkpoints."""
    names: dict[tuple[int, int], int] = {}
    total = 0
    for status in (status for checkpoint in checkpoints for status in statuses(checkpoint)):
        inode = (status.st_dev, status.st_ino)
        names[inode] = names.get(inode, 0) + 1
        if names[inode] == status.st_nlink:
            total += status.st_size
    return total
