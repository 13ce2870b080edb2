"""What each of several processes has of the samples, so that together they see each once.

    training    a batch of all is drawn in an order that all draw alike; each rank takes its slice
    validation  each rank takes every so many-th sample

All ranks have as many batches, since each waits for the others in every one. Where samples are too
few for that, some rank gets samples of another one besides, which count nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from torchkeep.checkpointing.sample_order import LEAST_SAMPLES


def num_batches(num_samples: int, batch_size: int) -> int:
    """Return how many batches an epoch has; a last one of a single sample is left out."""
    whole, rest = divmod(num_samples, batch_size)
    return max(whole + (rest >= LEAST_SAMPLES), 1)


class SharedBatches(Sampler[list[int]]):
    """A rank's share of an epoch's batches.

    The order is that of a loader of one process with `shuffle=True`, whose global generator is
    where `generator` is.

    Args:
        num_samples: how many there are.
        batch_size: those of all ranks together in a batch; `size` divides it.
        rank: which rank this is.
        size: how many they are.
        generator: what the order is drawn from: at the same place on all ranks.

    Attributes:
        num_replicas: how many ranks there are, under the name that it has in PyTorch's
            DistributedSampler: by it a Checkpointer knows that this is a share.
        batch_size: samples of this rank in a batch.
    """

    def __init__(
        self, num_samples: int, batch_size: int, rank: int, size: int, generator: torch.Generator
    ) -> None:
        self._num_samples, self._num_at_once = num_samples, batch_size
        self._rank, self.num_replicas = rank, size
        self.batch_size = batch_size // size
        self.generator = generator

    def __len__(self) -> int:
        return num_batches(self._num_samples, self._num_at_once)

    def __iter__(self) -> Iterator[list[int]]:
        # As RandomSampler does it.
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.generator).item())
        drawn = torch.Generator().manual_seed(seed)
        order = torch.randperm(self._num_samples, generator=drawn).tolist()
        for number in range(len(self)):
            at = number * self._num_at_once
            batch = order[at : at + self._num_at_once]
            yield [batch[place] for place in self._share(len(batch))[0]]

    def share(self, number: int) -> tuple[int, float]:
        """Return how many samples this rank has in a batch, and what their mean loss counts.

        In the mean over the ranks that is 1, but for an epoch's last batch, of which some have more
        samples than others.
        """
        rest = max(self._num_samples - number * self._num_at_once, 1)
        places, weight = self._share(min(rest, self._num_at_once))
        return len(places), weight

    def _share(self, count: int) -> tuple[Sequence[int], float]:
        """Return the places of a batch that a rank takes, and what they count."""
        num_sharing = self.num_replicas
        if count < self._num_at_once:
            num_sharing = min(max(count // LEAST_SAMPLES, 1), num_sharing)
        place = self._rank % num_sharing
        taken = range(place * count // num_sharing, (place + 1) * count // num_sharing)
        # Whoever is beyond those that share it takes what another has, which counts once.
        is_own = place == self._rank
        return taken, self.num_replicas * len(taken) / count if is_own else 0.0


class SharedSamples(Sampler[int]):
    """Every `size`-th sample from the `rank`-th on, and perhaps one more than that.

    Args:
        num_samples: how many there are.
        rank: which rank this is.
        size: how many they are.

    Attributes:
        num_own: how many are this rank's. What comes after them is there so that all have as many.
    """

    def __init__(self, num_samples: int, rank: int, size: int) -> None:
        self._own = range(rank, num_samples, size)
        self.num_own = len(self._own)
        self._num_given = -(-num_samples // size)

    def __len__(self) -> int:
        return self._num_given

    def __iter__(self) -> Iterator[int]:
        yield from self._own
        yield from [0] * (self._num_given - self.num_own)
