"""Which tensors of a state go into which file of a folder, and where in it.

All of that follows from names, shapes and dtypes. So it is known before a single byte is copied,
and copies are made as the files will have them: what is side by side there already goes to the
disk in one piece, from where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from torchkeep.checkpointing.layout.frozen import frozen_tensors
from torchkeep.checkpointing.ranks import ALONE, Ranks
from torchkeep.checkpointing.state.encoding import JSON
from torchkeep.checkpointing.state.sharded import Part, local_of
from torchkeep.files import BLOCK_NBYTES
from torchkeep.formats.own.manifest import (
    MODEL_FILE,
    MODEL_FILES,
    OBJECTS,
    place_of,
    place_of_piece,
    rank_file,
    split_files,
)
from torchkeep.saving.safetensors import described
from torchkeep.tensors import dtype_name
from torchkeep.writing.safetensors import Layout, in_order

Files = dict[str, dict[str, str]]
"""The tensors of each file: the name that each has in it, and the state's own name of it."""

_SPLIT_NBYTES = 1 << 20
"""Frozen tensors of fewer bytes get no file of their own."""


def by_file(tensors: Mapping[str, torch.Tensor], structure: JSON) -> Files:
    """Return what goes into each file; what is frozen goes into files of its own if it is much."""
    frozen = frozen_tensors(tensors, structure)
    files: Files = {}
    for name in tensors:
        file, key = place_of(name)
        files.setdefault(file, {})[key] = name
    if not frozen:
        return files
    placed: Files = {}
    for file, content in files.items():
        still = {key: name for key, name in content.items() if name in frozen}
        nbytes = sum(_nbytes(tensors[name]) for name in still.values())
        if len(still) == len(content) or nbytes < _SPLIT_NBYTES:
            placed[file] = content
        else:
            first, second = split_files(file)
            placed[first] = still
            placed[second] = {key: name for key, name in content.items() if key not in still}
    return placed


def common_tensors(part: Part) -> dict[str, torch.Tensor]:
    """Return what all ranks should have alike: the tensors of objects that are not sharded."""
    return {
        name: tensor
        for name, tensor in part.tensors.items()
        if name.startswith(OBJECTS) and name not in part.shards
    }


def by_rank(part: Part, rank: int) -> tuple[Files, Files]:
    """Return what goes into files that ranks write once for all, and into those of this rank.

    The first are of what all ranks should have alike. But of a model that is sharded, what it has
    whole, such as its buffers, is the first rank's.
    """
    common = common_tensors(part)
    shared = by_file(common, part.structure)
    own: Files = {}
    is_sharded = any(place_of(name)[0] == MODEL_FILE for name in part.shards)
    of_model = [shared.pop(file, {}) for file in MODEL_FILES if is_sharded]
    whole = {name for content in of_model for name in content.values()} if rank == 0 else set()
    for name in part.tensors:
        if name in part.shards or name in whole:
            file, key = place_of_piece(name, rank)
        elif name not in common:
            file, key = rank_file(rank), name
        else:
            continue
        own.setdefault(file, {})[key] = name
    return shared, own


def laid_out(tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]) -> Layout:
    """Return a file that can be written. Its tensors begin with a block of the disk."""
    return Layout(described(tensors), texts, alignment=BLOCK_NBYTES)


@dataclass(frozen=True, slots=True)
class Placement:
    """The tensors of all files as they lie in them, one file after the other.

    Attributes:
        starts: where each tensor begins, by the first of its names in the state. Of one that can't
            be copied as it is to lie in the file (it is elsewhere, or in another order), a gap is
            left that puts what follows in the right place of a block.
        nbytes: how much it is.
    """

    starts: Mapping[str, int]
    nbytes: int


UNPLACED = Placement({}, 0)
"""Of files that have something between any two tensors."""


def placement_of(part: Part, first_names: Mapping[str, str], ranks: Ranks = ALONE) -> Placement:
    """Return where copies of the tensors belong, so that they lie in memory as in their files.

    Args:
        part: what this rank has of a state.
        first_names: for each name the first one that the same tensor has.
        ranks: who writes together.
    """
    tensors = {name: local_of(tensor) for name, tensor in part.tensors.items()}
    starts: dict[str, int] = {}
    end = 0
    files = list(by_file(part.tensors, part.structure).values())
    if not ranks.is_alone or part.shards:
        shared, own = by_rank(part, ranks.rank)
        files = [*shared.values(), *own.values()]
    for content in files:
        end = -(-end // BLOCK_NBYTES) * BLOCK_NBYTES
        # A file has a tensor once, under the first of its names there.
        stored = {first_names[name]: key for key, name in reversed(content.items())}
        dtypes = {key: dtype_name(tensors[content[key]].dtype) for key in stored.values()}
        for key in in_order(dtypes):
            name, nbytes = content[key], _nbytes(tensors[content[key]])
            if first_names[name] == name and _can_be_placed(tensors[name]):
                starts[name] = end
                end += nbytes
            else:
                end += nbytes % BLOCK_NBYTES
    return Placement(starts, end)


def _can_be_placed(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.layout == torch.strided and tensor.is_contiguous()


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # a sparse one has no `nbytes`
