"""An epoch that goes on with another number of ranks: no sample is lost, none is seen twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from checkpointing.walks import walk
from torchkeep.checkpointing.sample_order import Passes, regrouped
from torchkeep.checkpointing.sample_order.regrouping import dealt_out, rest_of
from torchkeep.errors import CheckpointProblem


def loader(rank: int, size: int, num_samples: int, batch_size: int, **options) -> DataLoader:
    data = TensorDataset(torch.arange(num_samples))
    sampler = DistributedSampler(data, size, rank, seed=1) if size > 1 else None
    return DataLoader(data, batch_size, sampler=sampler, shuffle=sampler is None, **options)


@given(
    st.integers(1, 60), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9)
)
def test_no_sample_is_lost_and_none_is_seen_twice(num_samples, before, after, batch_size, stop):
    passes = [Passes() for _ in range(before)]
    loaders = [loader(rank, before, num_samples, batch_size) for rank in range(before)]
    num_batches = min(stop, len(loaders[0]) - 1)
    if num_batches < 1:
        return
    seen = Counter()
    for some, one in zip(passes, loaders, strict=True):
        seen.update(index for batch in walk(some, one, num_batches) for index in batch)
    states = [some.state() for some in passes]
    steps = set()
    for rank in range(after):
        going_on = Passes()
        going_on.resume(regrouped(states, rank, after))
        rest = walk(going_on, loader(rank, after, num_samples, batch_size))
        steps.add(len(rest))
        assert all(0 < len(batch) <= batch_size for batch in rest)
        seen.update(index for batch in rest for index in batch)
    assert len(steps) == 1  # else the ranks would wait for each other
    assert set(seen) == set(range(num_samples))
    repeated = sum(seen.values()) - num_samples
    # Samplers repeat some where the ranks don't divide them, and here some if fewer are left than
    # ranks, or if each rank has but one in a batch.
    left = num_samples - before * batch_size * num_batches
    is_short = left < after or batch_size == 1
    assert repeated <= (after if is_short else 0) + (before if before > 1 and left <= 0 else 0)


@given(st.integers(0, 99), st.integers(1, 7), st.integers(1, 7))
def test_all_ranks_get_as_many_batches(num_samples, size, batch_size):
    rest = list(range(num_samples))
    found = [dealt_out(rest, rank, size, batch_size) for rank in range(size)]
    assert len({len(batches) for batches in found}) == 1
    assert all(batch for batches in found for batch in batches)
    row = Counter(index for batches in found for batch in batches for index in batch)
    assert set(row) == set(rest)
    if batch_size > 1 and num_samples >= size:
        assert set(row.values()) <= {1}


def test_what_every_rank_walks_over_is_not_shared_out():
    passes = [Passes() for _ in range(2)]
    for some in passes:
        torch.manual_seed(3)  # the same order on both
        walk(some, loader(0, 1, 10, 2), 2)
    states = [some.state() for some in passes]
    seen = []
    for rank in range(3):
        going_on = Passes()
        going_on.resume(regrouped(states, rank, 3))
        seen.append(walk(going_on, loader(0, 1, 10, 2)))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 3


def test_samples_that_were_drawn_twice_are_seen_twice():
    orders = [[[1, 2], [3, 1]], [[1, 5], [2, 2]]]
    assert rest_of(orders, 1, 6) == [3, 1, 2, 2]
    assert rest_of([[[1], [2]], [[2], [1]]], 1, None) == [2, 1]
    assert rest_of([[[slice(1)], [slice(2)]], [[slice(3)], [slice(4)]]], 1, 4) == [
        slice(2),
        slice(4),
    ]


def test_a_loader_without_batches_goes_on_sample_by_sample():
    def one(rank: int, size: int) -> DataLoader:
        return loader(rank, size, 12, None)

    passes = [Passes() for _ in range(2)]
    seen = [index for n in range(2) for (index,) in walk(passes[n], one(n, 2), 3)]
    states = [some.state() for some in passes]
    for rank in range(3):
        going_on = Passes()
        going_on.resume(regrouped(states, rank, 3))
        rest = walk(going_on, one(rank, 3))
        assert len(rest) == 2
        seen += [index for (index,) in rest]
    assert sorted(seen) == list(range(12))


def test_one_that_was_regrouped_may_be_so_again():
    passes = [Passes() for _ in range(2)]
    seen = [i for n in range(2) for batch in walk(passes[n], loader(n, 2, 24, 2), 2) for i in batch]
    states = [some.state() for some in passes]
    begun, saved = [], []
    for rank in range(3):
        going_on = Passes()
        going_on.resume(regrouped(states, rank, 3))
        saved.append(going_on.state())  # before its first batch
        seen += [i for batch in walk(going_on, loader(rank, 3, 24, 2), 1) for i in batch]
        begun.append(going_on.state())
    assert all(item["share"] == [n, 3] for n, state in enumerate(saved) for item in state["passes"])
    for rank in range(2):
        going_on = Passes()
        going_on.resume(regrouped(begun, rank, 2))
        seen += [i for batch in walk(going_on, loader(rank, 2, 24, 2)) for i in batch]
    assert sorted(seen) == list(range(24))
    first = [Passes() for _ in range(2)]
    for rank, going_on in enumerate(first):
        going_on.resume(regrouped(saved, rank, 2))
    rest = [i for n in range(2) for batch in walk(first[n], loader(n, 2, 24, 2)) for i in batch]
    assert len(rest) == len(set(rest)) == 16


def test_what_can_not_be_shared_out_is_said():
    states = [{"passes": [{"kind": "skipping", "batch": 1, "is_over": False}]}] * 2
    with pytest.raises(CheckpointProblem, match=r"can't tell its order.*Go on with as many ranks"):
        regrouped(states, 0, 3)
    uneven = [
        {"passes": [{"kind": "indices", "batch": n, "is_over": False, "order": []}]} for n in (1, 2)
    ]
    with pytest.raises(CheckpointProblem, match="the ranks had finished 1 to 2 batches"):
        regrouped(uneven, 0, 3)
    over = [{"passes": [{"kind": "skipping", "batch": 4, "is_over": True}]}] * 2
    assert regrouped(over, 1, 3)["passes"][0]["is_over"]
