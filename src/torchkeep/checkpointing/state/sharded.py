"""Tensors of which every rank has a piece: PyTorch's `DTensor`, as FSDP2 makes them of parameters.

A checkpoint knows them by their full shape. What a rank has of one is a `Shard`; what lies in files
is a `Sharded`, of which a rank reads what it needs, and `like` makes of it what a live tensor is.

Source: torch/distributed/tensor/_api.py; `__create_chunk_list__` is the protocol by which
`torch.distributed.checkpoint` asks a tensor for its piece.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch

from torchkeep.contents import Box
from torchkeep.errors import SaveRefused


class Shard(NamedTuple):
    """Which part of a tensor a rank has."""

    box: Box
    """Where in the whole it is."""
    shape: tuple[int, ...]
    """The sizes of the whole."""
    is_ours: bool
    """Whether this rank is to keep it: of several that have the same part, one does."""
    num_ranks: int
    """Over how many ranks the tensor is spread. Others may have another copy of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank has of a state that is to be written, taken apart."""

    tensors: Mapping[str, torch.Tensor]
    """By name; of sharded ones those of which this rank keeps a piece."""
    structure: Any
    """Refers to all of them, whoever keeps them."""
    shards: Mapping[str, Shard] = field(default_factory=dict)
    """What this rank has of the sharded ones."""


def part_of(tensors: Mapping[str, torch.Tensor], structure: Any) -> Part:
    """Return a state that `encode` took apart without the pieces that other ranks keep.

    Raises:
        SaveRefused: ranks have summands of a tensor, and not pieces.
    """
    for name, tensor in tensors.items():
        check_has_pieces(tensor, name)
    shards = _shards_of({name: item for name, item in tensors.items() if is_sharded(item)})
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in shards or shards[name].is_ours
    }
    return Part(kept, structure, shards)


def _shards_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Shard]:
    """Return what this rank has of sharded tensors, by name."""
    # PyTorch takes a tenth of a millisecond for each, and moments are spread as their parameters.
    known: dict[Any, Shard] = {}
    shards = {}
    for name, tensor in tensors.items():
        dtensor: Any = tensor
        spread = dtensor.device_mesh, dtensor.placements, dtensor.shape
        if spread not in known:
            known[spread] = shard_of(tensor)
        shards[name] = known[spread]
    return shards


def check_has_pieces(tensor: object, name: str) -> None:
    """Raise unless a tensor is plain, or made of what ranks have of it by laying it side by side.

    Raises:
        SaveRefused: it is still to be added up. The message names it.
    """
    dtensor: Any = tensor
    if is_sharded(tensor) and any(item.is_partial() for item in dtensor.placements):
        raise SaveRefused(
            f"tensor {name!r} is {dtensor.placements}: what ranks have is still to be added up",
            advice="Save tensor.redistribute(placements=[Replicate()]).",
        )


def is_sharded(value: object) -> bool:
    """Whether a value is a tensor that PyTorch has spread over ranks."""
    module = sys.modules.get("torch.distributed.tensor")  # who has none did not import it
    return module is not None and isinstance(value, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory that a rank has of a tensor: the tensor itself, unless it is sharded."""
    if not is_sharded(tensor):
        return tensor
    dtensor: Any = tensor
    if not torch.is_grad_enabled():  # the other way takes three times as long
        return dtensor.to_local()  # type: ignore[no-any-return]
    with torch.no_grad():  # else it would be a view that remembers where it is from
        return dtensor.to_local()  # type: ignore[no-any-return]


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; if it is sharded, all ranks have to ask for it."""
    if not is_sharded(tensor):
        return tensor
    dtensor: Any = tensor.detach()
    whole: torch.Tensor = dtensor.full_tensor()
    return whole


def shard_of(tensor: torch.Tensor) -> Shard:
    """Return what this rank has of a sharded tensor.

    Where a mesh has several ranks with the same piece (replicas), the first of them keeps it. One
    of no elements is kept by nobody, but for the first of a tensor that has none at all.
    """
    dtensor: Any = tensor
    mesh = dtensor.device_mesh
    box = box_of(tensor)
    is_empty = prod(tuple(tensor.shape)) == 0  # then all ranks have the same of it, nothing
    coordinate = mesh.get_coordinate()
    is_first = coordinate is not None and all(
        place == 0
        for place, placement in zip(coordinate, dtensor.placements, strict=True)
        if placement.is_replicate() or is_empty
    )
    is_ours = is_first and (prod(box.shape) > 0 or is_empty)
    return Shard(box, tuple(tensor.shape), is_ours, mesh.size())


def box_of(tensor: torch.Tensor) -> Box:
    """Return which part of the whole this rank has of a sharded tensor."""
    dtensor: Any = tensor
    if dtensor.device_mesh.get_coordinate() is None:  # it is spread over others
        return Box((0,) * tensor.dim(), (0,) * tensor.dim())
    (chunk,) = dtensor.__create_chunk_list__()
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


@dataclass(frozen=True, slots=True)
class Stored:
    """A piece of a tensor that lies in a file."""

    box: Box
    """Where in the whole it is."""
    read: Callable[[], torch.Tensor]
    """Returns it, compared with its digest."""


@dataclass(slots=True)
class Sharded:
    """A tensor of a checkpoint that lies there in pieces, and is read as far as it is needed."""

    dtype: torch.dtype
    """The type of its elements."""
    shape: tuple[int, ...]
    """The sizes of the whole."""
    pieces: tuple[Stored, ...]
    """What it is made of."""
    _last: tuple[Box, torch.Tensor] | None = field(default=None, repr=False)
    """What was read last: a run is put back twice."""

    def whole(self) -> torch.Tensor:
        """Return all of it."""
        return self._read(Box((0,) * len(self.shape), tuple(self.shape)))

    def part(self, box: Box) -> torch.Tensor:
        """Return a part of it. Each piece that has some of that is read as a whole, and checked."""
        if self._last is None or self._last[0] != box:
            self._last = box, self._read(box)
        return self._last[1]

    def _read(self, box: Box) -> torch.Tensor:
        found = torch.empty(box.shape, dtype=self.dtype)
        for piece in self.pieces if prod(box.shape) else ():
            common = _common(box, piece.box)
            if common is None:
                continue
            read = piece.read()
            if common == box == piece.box:
                return read
            found[_slices(common, box.offsets)] = read[_slices(common, piece.box.offsets)]
        return found


def _common(one: Box, other: Box) -> Box | None:
    """Return what two parts of a tensor have in common; None if that is nothing.

    >>> _common(Box((0, 2), (4, 4)), Box((3, 0), (4, 3)))
    Box(offsets=(3, 2), shape=(1, 1))
    """
    starts = tuple(map(max, one.offsets, other.offsets))
    ends = [min(a + n, b + m) for a, n, b, m in zip(*one, *other, strict=True)]
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return None if any(size <= 0 for size in sizes) else Box(starts, sizes)


def _slices(box: Box, origin: tuple[int, ...]) -> tuple[slice, ...]:
    """Return where a part of the whole is in a tensor that begins at `origin`."""
    return tuple(
        slice(start - zero, start - zero + size)
        for start, size, zero in zip(*box, origin, strict=True)
    )


def like(live: object, saved: Any) -> Any:
    """Return a saved tensor in the form that a live one has: whole, or this rank's piece of it.

    Args:
        live: what is there now, perhaps sharded.
        saved: a tensor, or one in pieces; what is neither is returned as it is.
    """
    if not isinstance(saved, torch.Tensor | Sharded):
        return saved
    if not is_sharded(live) or tuple(saved.shape) != tuple(live.shape):  # type: ignore[attr-defined]
        return saved.whole() if isinstance(saved, Sharded) else saved
    if is_sharded(saved):
        return saved
    return _spread_as(live, saved)


def _spread_as(live: Any, saved: torch.Tensor | Sharded) -> torch.Tensor:
    """Return a whole tensor as one that is sharded as the live one is."""
    from torch.distributed.tensor import DTensor

    box = box_of(live)
    local = (
        saved.part(box) if isinstance(saved, Sharded) else saved[_slices(box, (0,) * saved.dim())]
    )
    made: torch.Tensor = DTensor.from_local(
        local.to(live.device),
        live.device_mesh,
        live.placements,
        run_check=False,
        shape=live.shape,
        stride=live.stride(),
    )
    return made


def all_whole(state: Any) -> Any:
    """Return a state with each tensor whole."""
    if isinstance(state, Sharded):
        return state.whole()
    if isinstance(state, dict):
        return type(state)({key: all_whole(item) for key, item in state.items()})
    if isinstance(state, list | tuple):
        return type(state)([all_whole(item) for item in state])
    return state
