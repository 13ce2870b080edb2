"""Pieces of which other ranks have a copy without knowing it: one of them keeps each.

A tensor that is spread over all ranks tells by itself who keeps which piece (`shard_of`). One that
is spread over some of them does not: with tensor parallelism beside FSDP2, what is not parallel is
spread over the ranks of each row of the mesh, so every row has all of it. Whether another one has
the same is asked of all, and that the copies are alike is found out by their digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torchkeep.checkpointing.ranks import Ranks
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.contents import Box
from torchkeep.errors import SaveRefused
from torchkeep.files import digest
from torchkeep.saving.leaves import check_tensor
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu


class _Claim(NamedTuple):
    """What a rank would keep of a tensor."""

    form: str
    """The whole tensor's type and sizes."""
    box: Box
    """Which part of it."""
    digest: str


class _Answer(NamedTuple):
    """What a rank is told about its claims."""

    others: frozenset[str]
    """The tensors whose pieces a rank before this one keeps."""
    differing: tuple[str, ...]
    """Those of them that are not alike."""


def kept_once(part: Part, ranks: Ranks) -> tuple[Part, list[str]]:
    """Return a part without the pieces that a rank before this one keeps; all ranks call it.

    Returns:
        The part, and why a resume of this rank may not be exact: its copies were other ones.

    Raises:
        SaveRefused: a tensor can't be kept, or ranks have different ones under its name.
        CheckpointProblem: a rank has ended, or does not answer.
    """
    names = [
        name
        for name, shard in part.shards.items()
        if shard.is_ours and shard.num_ranks < ranks.size
    ]
    if not ranks.any(bool(names)):
        return part, []
    claims = ranks.gathered(lambda: {name: _claim(part, name) for name in names})
    answer = ranks.first(lambda: _answers(claims))[ranks.rank]
    kept = {name: tensor for name, tensor in part.tensors.items() if name not in answer.others}
    return replace(part, tensors=kept), [
        f"its copy of {name} is not that of the ranks before it" for name in answer.differing
    ]


def _claim(part: Part, name: str) -> _Claim:
    tensor, shard = part.tensors[name], part.shards[name]
    check_tensor(tensor, name)
    form = f"{dtype_name(tensor.dtype)} {list(shard.shape)}"
    return _Claim(form, shard.box, digest(bytes_of(plain_on_cpu(tensor))))


def _answers(claims: Sequence[dict[str, _Claim]]) -> list[_Answer]:
    """Return what each rank is told: the first one that claims a piece keeps it."""
    forms: dict[str, tuple[int, str]] = {}
    kept: dict[tuple[str, Box], str] = {}
    answers = []
    for rank, claimed in enumerate(claims):
        others, differing = [], []
        for name, claim in claimed.items():
            first, form = forms.setdefault(name, (rank, claim.form))
            if form != claim.form:
                raise SaveRefused(
                    f"{name} is {form} on rank {first} and {claim.form} on rank {rank}",
                    advice="Give what ranks have each for itself other names.",
                )
            piece = name, claim.box
            if piece in kept:
                others.append(name)
                differing += [name] * (claim.digest != kept[piece])
            else:
                kept[piece] = claim.digest
        answers.append(_Answer(frozenset(others), tuple(differing)))
    return answers
