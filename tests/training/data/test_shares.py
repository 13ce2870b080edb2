"""What each of several ranks has of the samples."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from checkpointing.walks import walk
from torchkeep.checkpointing.sample_order import Passes, regrouped
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


@given(
    st.integers(2, 70), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8)
)
def test_another_number_of_ranks_goes_on_with_an_epoch_step_by_step(
    num_samples: int, share: int, before: int, after: int, stop: int
) -> None:
    batch_size = share * before * after

    def loaders(size: int) -> list[DataLoader]:
        data = TensorDataset(torch.arange(num_samples))
        shares = shares_of(num_samples, batch_size, size)
        return [DataLoader(data, batch_sampler=item, generator=item.generator) for item in shares]

    num_steps = len(loaders(1)[0])
    if stop >= num_steps:
        return
    passes = [Passes() for _ in range(before)]
    begun = [walk(*pair, stop) for pair in zip(passes, loaders(before), strict=True)]
    states = [some.state() for some in passes]
    rest = []
    for rank, loader in enumerate(loaders(after)):
        going_on = Passes()
        going_on.resume(regrouped(states, rank, after))
        rest.append(walk(going_on, loader))
    assert {len(batches) for batches in rest} == {num_steps - stop}
    steps = [list(chain(*step)) for part in (begun, rest) for step in zip(*part, strict=True)]
    # The last but one gives some of its samples to the last, if that has too few for the ranks.
    assert [len(step) for step in steps[:-2]] == [batch_size] * (num_steps - 2)
    drawn = [index for step in steps for index in step]
    is_left_out = num_samples % batch_size == 1  # a last batch of one sample
    assert len(set(drawn)) == num_samples - is_left_out
    # Only where fewer samples are left than there are ranks, some see the same.
    left = num_samples - is_left_out - stop * batch_size
    is_short = left < after or batch_size == after
    num_last = (left - 1) % batch_size + 1
    assert len(drawn) - len(set(drawn)) == (max(after - num_last, 0) if is_short else 0)
