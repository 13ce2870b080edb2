"""The processes that train together: what they are, and whether they can as the settings say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import Store

from torchkeep.checkpointing.ranks import Ranks, said_by_torchrun
from torchkeep.errors import WrongArgument
from torchkeep.training.settings import Settings
from torchkeep.wording import counted


def num_launched() -> int:
    """Return how many processes torchrun, or the like, has started together with this one."""
    return said_by_torchrun("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return which of the processes of this machine this is."""
    return said_by_torchrun("LOCAL_RANK", 0)


@contextmanager
def process_group(device: str, store: Store) -> Iterator[None]:
    """Have the processes that were started together form a group within the block.

    Args:
        device: see `Settings.device`. With CUDA they talk through NCCL, else through gloo.
        store: by which they find each other.
    """
    is_cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    if is_cuda and local_rank() < torch.cuda.device_count():  # else `check_sharing` says why not
        torch.cuda.set_device(local_rank())
    distributed.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=num_launched(),
    )
    yield
    # Only here: after an error others may be in the midst of a step, and would be waited for.
    distributed.destroy_process_group()


def check_sharing(settings: Settings, size: int) -> None:
    """Make sure that so many processes can train a network as the settings say.

    Raises:
        WrongArgument: they can't; the message says why.
    """
    if settings.shard:
        _check_sharding(settings, size)
    if size == 1:
        return
    if settings.batch_size % size:
        below = settings.batch_size // size * size
        near = [f"{number}" for number in (below, below + size) if number]
        raise WrongArgument(
            f"{size} processes can't have equal shares of batches of {settings.batch_size}",
            advice=f"Choose a --batch-size of {' or '.join(near)}.",
        )
    if settings.device not in ("auto", "cpu", "cuda"):
        raise WrongArgument(
            f"{size} processes can't train on {settings.device}: each has a device of its own",
            advice="Choose --device cpu or cuda.",
        )
    num_here = said_by_torchrun("LOCAL_WORLD_SIZE", size)
    num_devices = torch.cuda.device_count()
    if settings.device != "cpu" and 0 < num_devices < num_here:
        raise WrongArgument(
            f"there are {counted(num_devices, 'CUDA device')} here, too few for {num_here} "
            "processes",
            advice=f"Start {num_devices}, or choose --device cpu.",
        )


def check_alike(identities: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that all ranks have the same data, of which each is to take its share.

    Args:
        identities: of each rank, what `identity_of` says of its data.

    Raises:
        WrongArgument: they have not.
    """
    first = identities[0]
    for rank, other in enumerate(identities):
        if different := [name for name in first if first[name] != other[name]]:
            raise WrongArgument(
                f"the processes do not have the same data: {', '.join(different)} of the first one "
                f"and of number {rank + 1} differ",
                advice="Make the data sets and their order the same in each: without random "
                "numbers that were not seeded, and not from a set, say.",
            )


def _check_sharding(settings: Settings, size: int) -> None:
    if size == 1:
        raise WrongArgument(
            "--shard spreads a network over several processes, and this is one",
            advice="Start several, with --nproc N or with torchrun.",
        )
    for name in ("compile", "channels_last"):
        if getattr(settings, name):
            raise WrongArgument(
                f"--shard does not go with --{name.replace('_', '-')}",
                advice="Leave one of them out.",
            )


def ranks_here() -> Ranks:
    """Return the processes of the group that is initialised, connected; or this one alone."""
    ranks = Ranks.here()
    ranks.connect()
    return ranks
