"""The checkpoints of a run folder: what there is, and which is the newest whole one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torchkeep.checkpointing.encoding import decode
from torchkeep.checkpointing.layout import damage
from torchkeep.errors import FileMissing, FileProblem, FileUnreadable, NoCheckpoint
from torchkeep.formats.own.manifest import (
    CHECKPOINT_NAME,
    MANIFEST,
    read_manifest,
    wrong_size,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as its manifest tells it."""

    path: Path
    """Its folder."""
    step: int
    """Finished optimizer steps."""
    serial: int
    """Its number in the order of saving; what "newest" goes by. 0 if it can't be told."""
    problem: str
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
    """Bytes of its files, without the manifest."""
    inexact: tuple[str, ...] = ()
    """Why a resume from it may not be exact."""


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
        items = [item for item in folder.iterdir() if CHECKPOINT_NAME.fullmatch(item.name)]
    except OSError as error:
        raise FileUnreadable(
            f"the folder can't be read ({error.strerror or error})", path=folder
        ) from error
    found = [look_at(item) for item in items if item.is_dir()]
    return sorted(found, key=lambda item: (item.serial or math.inf, item.step))


def newest_whole(run: str | os.PathLike[str]) -> Newest:
    """Return the newest checkpoint of which every byte is as it was written.

    Raises:
        NoCheckpoint: there is none; the message names the damaged ones.
    """
    skipped: list[Checkpoint] = []
    for checkpoint in reversed(list_checkpoints(run)):
        problem = checkpoint.problem or damage(checkpoint.path)
        if not problem:
            return Newest(checkpoint, tuple(skipped))
        skipped.append(replace(checkpoint, problem=problem))
    damaged = "; ".join(f"{item.path.name}: {item.problem}" for item in skipped)
    raise NoCheckpoint(
        f"{os.fspath(run)}: "
        + (f"every checkpoint is damaged ({damaged})" if damaged else "there is no checkpoint"),
        advice="Start a run there first, or name the folder of another run.",
    )


def look_at(path: Path) -> Checkpoint:
    """Return what a checkpoint's manifest says, and whether its files have the right sizes."""
    match = CHECKPOINT_NAME.fullmatch(path.name)
    step = int(match[1]) if match else 0
    try:
        manifest = read_manifest(path)
    except FileMissing:
        return Checkpoint(path, step, 0, f"{MANIFEST} is missing")
    except FileProblem as error:
        return Checkpoint(path, step, 0, f"{MANIFEST} is unusable, {error.problem}")
    return Checkpoint(
        path,
        manifest["step"],
        manifest["serial"],
        wrong_size(path, manifest["files"]),
        epoch=manifest["epoch"],
        batch=manifest["batch"],
        metrics=decode({}, manifest["metrics"]),
        date=manifest["date"],
        nbytes=sum(file["nbytes"] for file in manifest["files"].values()),
        inexact=tuple(manifest["inexact"]),
    )
