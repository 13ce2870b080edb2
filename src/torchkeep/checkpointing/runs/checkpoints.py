"""The checkpoints of a run folder: what there is, and which is the newest whole one."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchkeep.checkpointing.layout import damage
from torchkeep.checkpointing.ranks import ALONE, Ranks
from torchkeep.checkpointing.state.encoding import decode
from torchkeep.errors import (
    CheckpointProblem,
    DamagedFile,
    FileMissing,
    FileProblem,
    FileUnreadable,
    NoCheckpoint,
    UnsupportedContent,
)
from torchkeep.formats.own.manifest import (
    MANIFEST,
    ONE_FILE,
    checkpoint_step,
    is_checkpoint_there,
    read_manifest,
    wrong_size,
)
from torchkeep.wording import counted


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as its manifest tells it."""

    path: Path
    """Its folder, or its file."""
    step: int
    """Finished optimizer steps."""
    serial: int
    """Its number in the order of saving; what "newest" goes by. 0 if it can't be told."""
    problem: str = ""
    """What is wrong with it; empty if nothing was found so far."""
    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Batches of the running epoch that were finished; 0 between epochs."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The epoch's metrics, as far as they were known."""
    date: str = ""
    """When it was made, UTC, ISO 8601."""
    nbytes: int = 0
    """Bytes of all its files."""
    inexact: tuple[str, ...] = ()
    """Why a resume from it may not be exact."""
    can_be_read: bool = True
    """False if it may be whole, and only we can't tell: of a newer version, not ours to read."""

    @property
    def point(self) -> str:
        """How far the run was: `step 1,200, epoch 3 and 10 batches`."""
        batches = f" and {counted(self.batch, 'batch')}" if self.batch else ""
        return f"step {self.step:,}, epoch {self.epoch:,}{batches}"


@dataclass(frozen=True, slots=True)
class Newest:
    """The checkpoint to resume from."""

    checkpoint: Checkpoint
    """The newest one of which every byte is as it was written."""
    skipped: tuple[Checkpoint, ...]
    """The damaged ones that are newer, or of unknown age; `problem` says what is wrong."""


def list_checkpoints(run: str | os.PathLike[str]) -> list[Checkpoint]:
    """Return the checkpoints in a run's folder, oldest first. Only sizes are checked.

    Those with an unreadable manifest come last.

    Raises:
        FileUnreadable: the folder can't be read.
    """
    folder = Path(run)
    if not folder.is_dir():
        return []
    try:
        found = [look_at(item) for item in folder.iterdir() if is_checkpoint_there(item)]
    except OSError as error:
        raise FileUnreadable(
            f"the folder can't be read ({error.strerror or error})", path=folder
        ) from error
    return sorted(found, key=lambda item: (item.serial or math.inf, item.step))


def newest_whole(run: str | os.PathLike[str], ranks: Ranks = ALONE) -> Newest:
    """Return the newest checkpoint of which every byte is as it was written.

    Args:
        run: the run's folder.
        ranks: who looks for it together; each reads a part of the files.

    Raises:
        NoCheckpoint: there is none; the message names the damaged ones.
        CheckpointProblem: one that may be newer can't be read here, and may be whole.
    """
    skipped: list[Checkpoint] = []
    for checkpoint in reversed(ranks.first(lambda: list_checkpoints(run))):
        if not checkpoint.can_be_read:
            raise CheckpointProblem(
                f"{checkpoint.path}: it may be the newest, and can't be read: {checkpoint.problem}",
                advice="Use the torchkeep that wrote it, or make it readable; or move it away, to "
                "go on from an older one.",
            )
        found = verified(checkpoint, ranks)
        if not found.problem:
            return Newest(found, tuple(skipped))
        skipped.append(found)
    damaged = "; ".join(f"{item.path.name}: {item.problem}" for item in skipped)
    if damaged:
        raise NoCheckpoint(
            f"{os.fspath(run)}: every checkpoint is damaged ({damaged})",
            advice="See what is left of them with `torchkeep inspect`; then move the folder away, "
            "or start in another one.",
        )
    raise NoCheckpoint(
        f"{os.fspath(run)}: there is no checkpoint",
        advice="Start a run there first, or name the folder of another run.",
    )


def verified(checkpoint: Checkpoint, ranks: Ranks = ALONE) -> Checkpoint:
    """Return what is known of a checkpoint after every byte of it was read.

    Args:
        checkpoint: what is known so far.
        ranks: who reads it together.
    """
    if checkpoint.problem:
        return checkpoint
    problems = ranks.every(lambda: damage(checkpoint.path, ranks=ranks))
    return replace(checkpoint, problem=next(filter(None, problems), ""))


def look_at(path: Path, manifest: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return what a checkpoint's manifest says, and whether its files have the right sizes.

    Args:
        path: the checkpoint.
        manifest: what it says, if that is known; else it is read.
    """
    step = checkpoint_step(path) or 0
    # One file is named as a whole: its manifest is a part of it.
    name = path.name if path.suffix == ONE_FILE else MANIFEST
    try:
        manifest = read_manifest(path) if manifest is None else manifest
        metrics = _metrics_of(manifest)
    except FileMissing:
        return Checkpoint(path, step, 0, f"{name} is missing")
    except FileProblem as error:
        can_be_read = not isinstance(error, FileUnreadable | UnsupportedContent)
        text = f"{name} is unusable, {error.problem}"
        return Checkpoint(path, step, 0, text, can_be_read=can_be_read)
    problem, can_be_read = wrong_size(path, manifest["files"]), True
    if not problem and (name := _forbidden(path, manifest["files"])):
        problem, can_be_read = f"{name} may not be read", False
    return Checkpoint(
        path,
        manifest["step"],
        manifest["serial"],
        problem,
        can_be_read=can_be_read,
        epoch=manifest["epoch"],
        batch=manifest["batch"],
        metrics=metrics,
        date=manifest["date"],
        nbytes=_nbytes(path, manifest),
        inexact=tuple(manifest["inexact"]),
    )


def _metrics_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that can be compared: a stranger's manifest may have anything there."""
    try:
        metrics = decode({}, manifest["metrics"])
    except (FileProblem, RecursionError):
        raise DamagedFile("its 'metrics' is not what a checkpoint has there") from None
    numbers = {}
    for name, value in metrics.items():
        if type(value) in (int, float):
            with contextlib.suppress(OverflowError):
                numbers[name] = float(value)
    return numbers


def _forbidden(path: Path, names: Iterable[str]) -> str:
    """Return a file that is there, and that may not be read; empty if there is none."""
    files = [path] if path.is_file() else [path / name for name in names]
    return next((file.name for file in files if not os.access(file, os.R_OK)), "")


def _nbytes(path: Path, manifest: Mapping[str, Any]) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
        nbytes = (path / MANIFEST).stat().st_size
    except OSError:  # it was removed a moment ago
        return 0
    files: dict[str, dict[str, int]] = manifest["files"]
    return nbytes + sum(file["nbytes"] for file in files.values())
