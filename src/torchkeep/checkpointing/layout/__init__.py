"""A checkpoint on disk, written and read back live: a folder, or one file.

Both hold the same: what `encode` took apart, with a digest of every tensor. A name that ends in
`.pth` is written as one file; what lies there is read as what it is.

    folder.py     a folder of safetensors files with a manifest
    placement.py  which tensors go into which of them, and where in it
    frozen.py     which tensors training leaves alone
    history.py    files that the checkpoint before has already
    reading_back.py  whether a folder's files are what was written
    one_file.py   a `.pth`
    usual_keys.py the keys that it has for everybody
    export.py     a state dict out of a checkpoint
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.layout.folder import read_folder, write_folder
from torchkeep.checkpointing.layout.history import Earlier
from torchkeep.checkpointing.layout.one_file import (
    damage_of_file,
    read_file_state,
    write_one_file,
)
from torchkeep.checkpointing.layout.placement import UNPLACED, Placement, placement_of
from torchkeep.checkpointing.layout.reading_back import Written, damage_of_folder
from torchkeep.checkpointing.state.encoding import JSON, State, encode
from torchkeep.errors import SaveRefused
from torchkeep.files import remove_files, remove_folder, staged_file
from torchkeep.formats.own.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MODEL_FILE,
    ONE_FILE,
    read_manifest,
)

__all__ = [
    "MANIFEST",
    "MODEL_FILE",
    "UNPLACED",
    "Earlier",
    "Placement",
    "Written",
    "check_facts",
    "damage",
    "placement_for",
    "read_manifest",
    "read_state",
    "remove_checkpoint",
    "write_checkpoint",
    "write_encoded",
]


def write_checkpoint(
    path: str | os.PathLike[str],
    state: State,
    *,
    facts: Mapping[str, Any],
    durable: bool = True,
    previous: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write `state` as a checkpoint, and return its manifest.

    Args:
        path: the checkpoint's name; nothing may be there. One that ends in `.pth` makes it one
            file, any other a folder.
        state: what `torchkeep.capture` returned.
        facts: plain values for the manifest's reader: step, epoch, metrics, date, ...
        durable: sync everything, so that a power loss can't undo it.
        previous: the checkpoint before. Files of a folder that would be the same as there are not
            written again: both have the same file, and either can be removed.

    Raises:
        SaveRefused: the state can't be kept, or the place can't be written.
    """
    earlier = Earlier(previous)
    written = write_encoded(path, *encode(state), facts=facts, durable=durable, earlier=earlier)
    return dict(written.manifest)


def write_encoded(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    structure: JSON,
    *,
    facts: Mapping[str, Any],
    durable: bool = True,
    background: bool = False,
    before_naming: Callable[[], None] = lambda: None,
    earlier: Earlier | None = None,
) -> Written:
    """Write a state that `encode` took apart.

    Args:
        path: see `write_checkpoint`.
        tensors: what `encode` returned.
        structure: likewise.
        facts: see `write_checkpoint`.
        durable: likewise.
        earlier: the checkpoint before, to share files with.
        background: take as little of the processors as can be, for somebody else computes.
        before_naming: is called when all is written; what it raises leaves nothing behind.

    Raises:
        SaveRefused: the state can't be kept, or the place can't be written.
    """
    plain_facts = check_facts(facts, "metadata")
    manifest: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, **plain_facts}
    manifest |= {"files": {}, "tensors": {}, "tied": {}, "structure": structure}
    if Path(path).suffix == ONE_FILE:
        with staged_file(path, durable=durable) as temporary:
            write_one_file(temporary, tensors, manifest, durable=durable, background=background)
            before_naming()
        return Written(Path(path), manifest)
    return write_folder(
        path,
        tensors,
        manifest,
        durable=durable,
        background=background,
        before_naming=before_naming,
        earlier=earlier or Earlier(),
    )


def placement_for(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    structure: JSON,
    first_names: Mapping[str, str],
) -> Placement:
    """Return where copies of a state's tensors are best made, to be written at `path`.

    Args:
        path: see `write_checkpoint`.
        tensors: what `encode` returned.
        structure: likewise.
        first_names: for each name the first one that the same tensor has.
    """
    if Path(path).suffix == ONE_FILE:  # it has something between any two of them
        return UNPLACED
    return placement_of(tensors, structure, first_names)


def check_facts(facts: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return plain values as a manifest has them.

    Args:
        facts: the values.
        place: what to call them in a message.

    Raises:
        SaveRefused: one of them is no plain value, or a tensor, for which a manifest has no place.
    """
    tensors, plain = encode(dict(facts), place)
    found: dict[str, Any] = plain
    for name in tensors:
        raise SaveRefused(f"{name} is a tensor or an array", advice="Pass it in extra={...}.")
    return found


def damage(path: str | os.PathLike[str], written: Written | None = None) -> str:
    """Return what is wrong with a checkpoint, or an empty string: every byte of it is read.

    Args:
        path: the checkpoint.
        written: what is known of it, if it was just written.
    """
    return damage_of_file(path) if _is_file(path) else damage_of_folder(path, written)


def read_state(path: str | os.PathLike[str], *, mmap: bool = False) -> State:
    """Return the state of a checkpoint. Each tensor is compared with its digest.

    Args:
        path: the checkpoint.
        mmap: map the files instead of reading them into memory.

    Raises:
        FileMissing: a file is missing.
        DamagedFile: something differs from what was written.
    """
    return (read_file_state if _is_file(path) else read_folder)(path, mmap=mmap)


def remove_checkpoint(path: str | os.PathLike[str], *, durable: bool = True) -> None:
    """Delete a checkpoint so that a crash on the way can't leave half of it under its name.

    Files that other checkpoints have as well stay theirs.

    Args:
        path: the checkpoint.
        durable: sync the loss of its name, so that a power loss can't bring half of it back.

    Raises:
        SaveRefused: the system refuses.
    """
    if Path(path).is_symlink() or _is_file(path):  # of a link, itself and not what it names
        remove_files([Path(path)], durable=durable)
    else:
        remove_folder(path, durable=durable)


def _is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint is one file; if nothing is there, whether it would be."""
    where = Path(path)
    return where.is_file() or (where.suffix == ONE_FILE and not where.is_dir())
