"""A checkpoint on disk, written and read back live: a folder, or one file.

Both hold the same: what `encode` took apart, with a digest of every tensor. A name that ends in
`.pth` is written as one file; what lies there is read as what it is.

    folder.py     a folder of safetensors files with a manifest
    placement.py  which tensors go into which of them, and where in it
    frozen.py     which tensors training leaves alone
    history.py    files that the checkpoint before has already
    reading_back.py  whether a folder's files are what was written

    together.py   a folder that all ranks of a run write at once
    copies.py     pieces of which other ranks have a copy without knowing it
    spreading.py  which rank writes which bytes
    nodes.py      parts of the structure that ranks have each for itself
    pieces.py     what the files of ranks hold
    whole_model.py  a sharded model as one file, beside its shards

    one_file.py   a `.pth`
    usual_keys.py the keys that it has for everybody
    export.py     a state dict out of a checkpoint
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchkeep.checkpointing.layout.folder import read_folder, write_folder
from torchkeep.checkpointing.layout.history import Earlier
from torchkeep.checkpointing.layout.one_file import (
    damage_of_file,
    read_file_state,
    write_one_file,
)
from torchkeep.checkpointing.layout.pieces import nodes_of_ranks
from torchkeep.checkpointing.layout.placement import UNPLACED, Placement, placement_of
from torchkeep.checkpointing.layout.reading_back import Written, damage_of_folder
from torchkeep.checkpointing.layout.together import write_together
from torchkeep.checkpointing.ranks import ALONE, Ranks
from torchkeep.checkpointing.state.encoding import State, encode
from torchkeep.checkpointing.state.sharded import Part, all_whole
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
    "read_data_of_ranks",
    "read_manifest",
    "read_part",
    "read_state",
    "remove_checkpoint",
    "write_checkpoint",
    "write_part",
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
    part = Part(*encode(state))
    return dict(write_part(path, part, facts=facts, durable=durable, earlier=earlier).manifest)


def write_part(
    path: str | os.PathLike[str],
    part: Part,
    *,
    facts: Mapping[str, Any],
    ranks: Ranks = ALONE,
    durable: bool = True,
    background: bool = False,
    before_naming: Callable[[], None] = lambda: None,
    earlier: Earlier | None = None,
    whole_model: bool = False,
) -> Written:
    """Write what this rank has of a state; all ranks call it.

    Args:
        path: see `write_checkpoint`.
        part: what this rank has.
        facts: see `write_checkpoint`; the first rank's count.
        ranks: who writes together.
        durable: likewise.
        earlier: the checkpoint before, to share files with.
        background: take as little of the processors as can be, for somebody else computes.
        before_naming: is called when all is written; what it raises leaves nothing behind.
        whole_model: write a sharded model as one file as well.

    Raises:
        SaveRefused: the state can't be kept, or the place can't be written.
        CheckpointProblem: another rank has ended, or does not answer.
    """
    plain_facts = check_facts(facts, "metadata")
    manifest: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, **plain_facts}
    manifest |= {"files": {}, "tensors": {}, "tied": {}, "structure": part.structure}
    if not ranks.is_alone or part.shards:
        return write_together(
            Path(path),
            part,
            manifest,
            ranks=ranks,
            durable=durable,
            background=background,
            before_naming=before_naming,
            earlier=earlier or Earlier(),
            whole_model=whole_model,
        )
    if Path(path).suffix == ONE_FILE:
        with staged_file(path, durable=durable) as temporary:
            write_one_file(
                temporary, part.tensors, manifest, durable=durable, background=background
            )
            before_naming()
        return Written(Path(path), manifest)
    return write_folder(
        path,
        part.tensors,
        manifest,
        durable=durable,
        background=background,
        before_naming=before_naming,
        earlier=earlier or Earlier(),
    )


def placement_for(
    path: str | os.PathLike[str],
    part: Part,
    first_names: Mapping[str, str],
    ranks: Ranks = ALONE,
) -> Placement:
    """Return where copies of a state's tensors are best made, to be written at `path`.

    Args:
        path: see `write_checkpoint`.
        part: what this rank has.
        first_names: for each name the first one that the same tensor has.
        ranks: who writes together.
    """
    if Path(path).suffix == ONE_FILE:  # it has something between any two of them
        return UNPLACED
    return placement_of(part, first_names, ranks)


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


def damage(
    path: str | os.PathLike[str], written: Written | None = None, ranks: Ranks = ALONE
) -> str:
    """Return what is wrong with a checkpoint, or an empty string: every byte of it is read.

    Args:
        path: the checkpoint.
        written: what is known of it, if it was just written.
        ranks: who looks at it, each at some of the files. What one returns is of those.
    """
    return damage_of_file(path) if _is_file(path) else damage_of_folder(path, written, ranks)


def read_state(path: str | os.PathLike[str], *, mmap: bool = False) -> State:
    """Return the state of a checkpoint. Each tensor is compared with its digest.

    What several ranks have written is put together: sharded tensors are whole. What they had each
    for itself is the first one's.

    Args:
        path: the checkpoint.
        mmap: map the files instead of reading them into memory.

    Raises:
        FileMissing: a file is missing.
        DamagedFile: something differs from what was written.
    """
    state: State = all_whole(read_part(path, ALONE, mmap=mmap))
    return state


def read_data_of_ranks(path: str | os.PathLike[str]) -> list[Any]:
    """Return where each rank that wrote a checkpoint was in the epoch.

    Raises:
        FileMissing: a file is missing.
        DamagedFile: something differs from what was written.
    """
    if _is_file(path):
        return [read_file_state(path)["data"]]
    return nodes_of_ranks(Path(path), read_manifest(path), "data")


def read_part(path: str | os.PathLike[str], ranks: Ranks, *, mmap: bool = False) -> State:
    """Return the state of a checkpoint as one rank has it.

    Sharded tensors are not read yet (`Sharded`). If other than as many ranks have written it, what
    they had each for itself is the first one's.

    Args:
        path: the checkpoint.
        ranks: tells which rank this is, and of how many.
        mmap: map the files instead of reading them into memory.

    Raises:
        FileMissing: a file is missing.
        DamagedFile: something differs from what was written.
    """
    if _is_file(path):
        return read_file_state(path, mmap=mmap)
    return read_folder(path, ranks, mmap=mmap)


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
