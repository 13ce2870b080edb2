"""Runs: where they are, what their checkpoints say, which of these is the last and the best."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchkeep.checkpointing.layout import read_manifest
from torchkeep.checkpointing.runs.checkpoints import Checkpoint, list_checkpoints, look_at, verified
from torchkeep.checkpointing.runs.lock import LOCK_NAME, writer_of
from torchkeep.checkpointing.runs.retention import Best, best_of
from torchkeep.errors import CheckpointProblem, FileMissing, FileProblem, NoCheckpoint
from torchkeep.formats.own.manifest import MANIFEST, checkpoint_step
from torchkeep.wording import printable

MAX_DEPTH = 4
"""Folders within folders that are looked through for runs."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder as its checkpoints tell it."""

    path: Path
    """Its folder."""
    checkpoints: tuple[Checkpoint, ...]
    """Oldest first; those with an unreadable manifest come last."""
    keep_best: Best | None
    """What the best one goes by; None if nobody says."""
    writer: str
    """Who writes to it, as in `process 4711 on machine`; empty if nobody does."""
    nbytes: int
    """Bytes of all its checkpoints on the disk. A file that several of them share counts once."""
    is_verified: bool
    """Whether every byte was read; else only sizes were looked at."""

    @property
    def last(self) -> Checkpoint | None:
        """The newest one that is not damaged, as far as was looked."""
        return next((item for item in reversed(self.checkpoints) if not item.problem), None)

    @property
    def best(self) -> Checkpoint | None:
        """The one with the best metric, the newest of equals."""
        if self.keep_best is None:
            return None
        return best_of(self.checkpoints, self.keep_best)


def find_runs(folder: str | os.PathLike[str], *, max_depth: int = MAX_DEPTH) -> list[Path]:
    """Return the runs among a folder and those below it, in the order of their names.

    Links to folders are not followed, and hidden folders not looked into.

    Raises:
        FileMissing: there is no such folder.
        CheckpointProblem: it may not be read, or is no folder.
        NoCheckpoint: no run was found.
    """
    start = Path(folder)
    _check_is_folder(start)
    found = list(_runs_below(start, max_depth))
    if not found:
        raise NoCheckpoint(
            f"{printable(str(start))}: there is no run in it, nor in the folders below it "
            f"({max_depth} levels)",
            advice=_advice_about(start),
        )
    return found


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    if depth:
        for name in _folders_in(folder):
            yield from _runs_below(folder / name, depth - 1)


def _folders_in(folder: Path) -> list[str]:
    """Return the names of the folders that may hold runs; none if it may not be read."""
    try:
        with os.scandir(folder) as items:
            return sorted(
                item.name
                for item in items
                if not item.name.startswith(".")
                and checkpoint_step(Path(item.name)) is None
                and item.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


def is_run(folder: Path) -> bool:
    """Tell whether a folder has checkpoints of ours, whole or not.

    Others call their checkpoints `step-00000100` as well; ours have a manifest, or stand beside
    the lock that a run leaves.
    """
    try:
        found = [item for item in folder.iterdir() if checkpoint_step(item) is not None]
    except OSError:
        return False
    if found and (folder / LOCK_NAME).is_file():
        return True
    return any(map(_has_manifest, found))


def _has_manifest(path: Path) -> bool:
    return (path / MANIFEST).is_file() if path.is_dir() else look_at(path).serial > 0


def check_run(run: str | os.PathLike[str]) -> Path:
    """Return a run's folder.

    Raises:
        FileMissing: there is no such folder.
        CheckpointProblem: it may not be read, or is no folder.
        NoCheckpoint: it is not a run's, or the run has no checkpoint yet.
    """
    folder = Path(run)
    _check_is_folder(folder)
    if not is_run(folder):
        raise NoCheckpoint(
            f"{printable(str(folder))}: there is no checkpoint in it",
            advice=_advice_about(folder, list(_runs_below(folder, MAX_DEPTH))),
        )
    return folder


def _check_is_folder(folder: Path) -> None:
    shown = printable(str(folder))
    try:
        os.listdir(folder)  # noqa: PTH208  (it opens the folder, which a Path's iterator may not)
    except FileNotFoundError:
        raise FileMissing(
            "there is no such folder", advice="Check the path.", path=folder
        ) from None
    except NotADirectoryError:
        raise CheckpointProblem(
            f"{shown}: this is a file", advice="Name the folder of a run."
        ) from None
    except OSError as error:
        raise CheckpointProblem(
            f"{shown}: it can't be read ({error.strerror or error})", advice="Check its mode."
        ) from None


def _advice_about(folder: Path, below: Sequence[Path] = ()) -> str:
    """Return what somebody who named this folder may have meant."""
    if (folder / MANIFEST).is_file():
        parent = folder.resolve().parent
        return f"This is a checkpoint; name the run's folder, {printable(str(parent))}."
    if below:
        more = f", and {len(below) - 1:,} more" if len(below) > 1 else ""
        return f"There is a run below it: {printable(str(below[0]))}{more}."
    return "A run's folder has checkpoints in it, such as step-00000100."


def look_at_run(
    run: str | os.PathLike[str], *, best: Best | None = None, verify: bool = False
) -> Run:
    """Return what a run's checkpoints say.

    Args:
        run: its folder.
        best: what the best one goes by; by default what the run itself keeps the best by.
        verify: read every byte of every checkpoint, and compare it with the digests.

    Raises:
        FileMissing, CheckpointProblem, NoCheckpoint: as by `check_run`.
    """
    folder = check_run(run)
    checkpoints = list_checkpoints(folder)
    if verify:
        checkpoints = [verified(item) for item in checkpoints]
    rule = best or keep_best_of(checkpoints)
    sizes = {
        (status.st_dev, status.st_ino): status.st_size
        for item in checkpoints
        for status in statuses(item.path)
    }
    return Run(
        path=folder,
        checkpoints=tuple(checkpoints),
        keep_best=rule,
        writer=writer_of(folder),
        nbytes=sum(sizes.values()),
        is_verified=verify,
    )


def statuses(checkpoint: Path) -> Iterator[os.stat_result]:
    """Yield what the system tells of each file of a checkpoint; of one that is gone, nothing."""
    is_folder = checkpoint.is_dir() and not checkpoint.is_symlink()
    try:
        files = list(checkpoint.iterdir()) if is_folder else [checkpoint]
    except OSError:
        return
    for file in files:
        try:
            status = file.lstat()
        except OSError:  # the run that writes to it has deleted it a moment ago
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield status


def keep_best_of(checkpoints: Iterable[Checkpoint]) -> Best | None:
    """Return what the newest readable checkpoint says that the run keeps the best by."""
    for item in reversed(list(checkpoints)):
        if not item.problem:
            try:
                return _as_rule(read_manifest(item.path).get("keep_best"))
            except FileProblem:
                continue
    return None


def _as_rule(value: Any) -> Best | None:
    """Return a rule, of what a manifest has for one."""
    match value:
        case [str(metric), "min" | "max" as direction]:
            return metric, direction
    return None
