"""What each of several ranks has of the samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from torchkeep.training.data.shares import SharedBatches, SharedSamples


def shares_of(num_samples: int, batch_size: int, size: int) -> list[SharedBatches]:
    return [
        SharedBatches(num_samples, batch_size, rank, size, torch.Generator().manual_seed(4))
        for rank in range(size)
    ]


def order_of_one(num_samples: int, batch_size: int) -> list[list[int]]:
    """Return the batches of one process, whose global generator is as those of `shares_of`."""
    loader = DataLoader(
        list(range(num_samples)),
        batch_size,
        shuffle=True,
        collate_fn=list,
        drop_last=num_samples > batch_size and num_samples % batch_size == 1,
    )
    torch.manual_seed(4)
    torch.empty((), dtype=torch.int64).random_()  # the seed of the workers, which a loader draws
    return [list(batch) for batch in loader.batch_sampler]


@given(st.integers(1, 70), st.integers(1, 5), st.integers(1, 5))
def test_ranks_have_together_what_one_has_and_all_make_as_many_steps(
    num_samples: int, share: int, size: int
) -> None:
    shares = shares_of(num_samples, share * size, size)
    for item in shares:  # a loader draws a seed for its workers first
        torch.empty((), dtype=torch.int64).random_(generator=item.generator)
    mine = [list(item) for item in shares]
    alone = order_of_one(num_samples, share * size)
    assert [len(some) for some in mine] == [len(alone)] * size
    for number, batch in enumerate(alone):
        told = [item.share(number) for item in shares]
        parts = [some[number] for some in mine]
        assert [count for count, _ in told] == [len(part) for part in parts]
        own = [part for part, (_, weight) in zip(parts, told, strict=True) if weight]
        assert [place for part in own for place in part] == batch
        assert all(parts)
        # The mean over the ranks of what each has as its mean is the mean of all.
        means = [sum(part) / len(part) * w for part, (_, w) in zip(parts, told, strict=True)]
        assert sum(means) / size == pytest.approx(sum(batch) / len(batch))


def test_no_rank_has_a_single_sample_in_the_last_batch() -> None:
    for rest in range(2, 12):
        shares = shares_of(24 + rest, 12, 4)
        assert min(len(list(item)[-1]) for item in shares) > 1


@given(st.integers(1, 40), st.integers(1, 5))
def test_each_sample_for_validation_counts_once(num_samples: int, size: int) -> None:
    parts = [SharedSamples(num_samples, rank, size) for rank in range(size)]
    assert len({len(list(part)) for part in parts}) == 1
    assert all(len(part) == len(list(part)) for part in parts)
    counted = [place for part in parts for place in list(part)[: part.num_own]]
    assert sorted(counted) == list(range(num_samples))
