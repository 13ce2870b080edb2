"""The same samples in the same order, whatever fetches them and wherever the pass goes on."""

from __future__ import annotations

import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
    get_worker_info,
)

from torchkeep.checkpointing.sample_order import Passes
from torchkeep.errors import CheckpointProblem


class Noise(Dataset):
    """Each sample is its index and draws from three generators."""

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> list[float]:
        return [float(index), random.random(), float(np.random.rand()), torch.rand(1).item()]


def walk(loader, *, epoch: int = 0, seed: int = 1) -> list[list[list[float]]]:
    passes = Passes()
    begun = passes.begin(loader, seed, epoch)
    return [rows(batch) for batch in begun.served(begun.remaining())]


def rows(batch) -> list[list[float]]:
    if isinstance(batch, list) and torch.is_tensor(batch[0]):
        return torch.stack(batch, dim=-1).tolist()
    return batch


def indices(batches) -> list[list[int]]:
    return [[int(sample[0]) for sample in batch] for batch in batches]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_order_is_the_one_that_the_loader_would_draw():
    expected = orders_of_four_epochs(lambda loader: [batch.tolist() for batch in loader])
    given = orders_of_four_epochs(lambda loader: [batch.tolist() for batch in walk(loader)])
    assert given == expected
    assert all(order != sorted(order) for order in expected)


def orders_of_four_epochs(walked) -> list[list[list[int]]]:
    """Return the orders of two epochs with a private generator, and of two with torch's own."""
    orders = []
    for generator in (torch.Generator().manual_seed(5), None):
        torch.manual_seed(3)
        loader = DataLoader(range(10), 3, shuffle=True, generator=generator)
        orders += [walked(loader) for _ in range(2)]
    return orders


class Eager:
    """A sampler that draws when it is asked for an iterator, not when for an index."""

    def __iter__(self):
        return iter(torch.randperm(10).tolist())

    def __len__(self) -> int:
        return 10


def test_a_sampler_that_draws_at_once_draws_before_the_loader():
    loader = DataLoader(Noise(), 3, sampler=Eager())
    torch.manual_seed(3)
    # Without the noise that a plain loader's samples draw from the same generator.
    expected = [batch.tolist() for batch in DataLoader(range(10), 3, sampler=Eager())]
    torch.manual_seed(3)
    assert indices(walk(loader)) == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(num_workers):
    alone = walk(DataLoader(Noise(), 3))
    assert walk(DataLoader(Noise(), 3, num_workers=num_workers)) == alone


def test_samples_depend_on_the_seed_the_epoch_and_the_index():
    loader = DataLoader(Noise(), 3)
    first = walk(loader)
    assert walk(loader) == first
    assert walk(loader, epoch=1) != first
    assert walk(loader, seed=2) != first
    noise = [tuple(sample[1:]) for batch in first for sample in batch]
    assert len(set(noise)) == len(noise)


def test_a_sample_does_not_depend_on_its_place_in_the_epoch():
    forwards = walk(DataLoader(Noise(), 3))
    backwards = walk(DataLoader(Noise(), 2, sampler=range(9, -1, -1)))
    assert sorted(chain(*forwards)) == sorted(chain(*backwards))


def test_a_sample_that_comes_twice_is_augmented_twice():
    batches = walk(DataLoader(Noise(), 4, sampler=[3, 3, 3, 3]))
    assert len({tuple(sample) for sample in batches[0]}) == 4


def test_fetching_does_not_disturb_the_global_generators():
    loader = DataLoader(Noise(), 3)
    random.seed(1)
    np.random.seed(1)
    list(DataLoader(range(10), 3))  # draws a seed for workers
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(0)
    walk(loader)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_fetching_with_workers_does_not_disturb_them_either():
    list(DataLoader(range(10), 3))
    expected = torch.rand(1)
    torch.manual_seed(0)
    walk(DataLoader(Noise(), 3, num_workers=1))
    assert torch.rand(1) == expected


def resumed(loader, num_steps: int, again=None):
    """Leave a pass after some steps and one more batch, and return what a new one gives."""
    passes = Passes()
    begun = passes.begin(loader, 1, 0)
    iterator = begun.served(begun.remaining())
    seen = []
    for _ in range(num_steps):
        seen.append(rows(next(iterator)))
        passes.finish_step()
    state = passes.state()
    fetched = next(iterator, None)  # given out, not finished
    assert fetched is not None or num_steps == 4
    other = Passes()
    other.resume(state)
    following = other.begin(again or loader, 1, 0)
    return seen, [rows(batch) for batch in following.served(following.remaining())]


@pytest.mark.parametrize("num_steps", range(5))
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_goes_on_after_its_last_finished_step(num_steps, num_workers):
    def loader(workers):
        generator = torch.Generator().manual_seed(3)
        return DataLoader(Noise(), 3, shuffle=True, generator=generator, num_workers=workers)

    whole = walk(loader(0))
    seen, rest = resumed(loader(num_workers), num_steps, loader(2 - num_workers))
    assert seen + rest == whole


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Noise(), batch_size=None),
        DataLoader(Subset(Noise(), [4, 2, 0, 1]), 1),
        DataLoader(Noise(), 3, drop_last=True),
        DataLoader(Noise(), 3, sampler=WeightedRandomSampler([1.0] * 10, 10)),
        DataLoader(Noise(), batch_sampler=BatchSampler(SequentialSampler(range(10)), 4, False)),
        DataLoader(Noise(), 3, sampler=np.random.RandomState(0).permutation(10)),
        DataLoader(Noise(), 3, collate_fn=lambda samples: [random.random(), samples]),
    ],
    ids=["unbatched", "subset", "drop last", "weighted", "batch sampler", "numpy", "collate"],
)
def test_every_map_style_loader_can_be_gone_on_with(loader):
    torch.manual_seed(0)
    passes = Passes()
    begun = passes.begin(loader, 1, 0)
    iterator = begun.served(begun.remaining())
    next(iterator)
    passes.finish_step()
    state, reasons = passes.state(), passes.inexact()
    rest = [str(batch) for batch in iterator]
    other = Passes()
    other.resume(state)
    following = other.begin(loader, 1, 0)
    assert [str(batch) for batch in following.served(following.remaining())] == rest
    assert rest
    assert reasons == []


class Whole(Dataset):
    """Takes whatever index it is given, and says what it was."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index) -> str:
        return repr(index)


@pytest.mark.parametrize(
    "sampler",
    [
        BatchSampler(range(8), 3, False),
        [(1, 2), (3, 4), (5, 6)],
        [1, [2, 3], "four", (5, [6])],
        [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4])],
    ],
    ids=["lists", "tuples", "mixed", "tensors"],
)
def test_without_a_batch_size_an_index_is_passed_through_whole(sampler):
    loader = DataLoader(Whole(), batch_size=None, sampler=sampler)
    expected = list(loader)
    assert walk(loader) == expected
    for num_steps in (1, 2):
        seen, rest = resumed(loader, num_steps)
        assert seen + rest == expected


def test_the_integers_of_an_array_are_passed_on_as_a_list():
    loader = DataLoader(Whole(), batch_size=None, sampler=[np.array([1, 2]), np.int64(3)])
    assert walk(loader) == ["[1, 2]", "3"]


class Fetching(Dataset):
    """Fetches only whole batches."""

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices):
        noise = random.random()
        return [[float(index), noise] for index in indices]


@pytest.mark.parametrize("dataset", [Fetching(), Subset(Fetching(), range(8))])
def test_a_data_set_that_fetches_whole_batches_does_so_under_one_seed(dataset):
    loader = DataLoader(dataset, 3)
    whole = walk(loader)
    assert indices(whole) == indices(rows(batch) for batch in loader)
    assert len({sample[1] for batch in whole for sample in batch}) == len(whole)
    seen, rest = resumed(loader, 1, DataLoader(dataset, 3, num_workers=1))
    assert seen + rest == whole


def test_a_subset_of_samples_is_still_seeded_by_the_sample():
    forwards = walk(DataLoader(Subset(Noise(), range(10)), 3))
    backwards = walk(DataLoader(Subset(Noise(), range(10)), 2, sampler=range(9, -1, -1)))
    assert sorted(chain(*forwards)) == sorted(chain(*backwards))


def left_after(loader, num_batches: int) -> tuple[Passes, list]:
    """Break off a pass after some finished batches."""
    passes = Passes()
    begun = passes.begin(loader, 1, 0)
    seen = []
    for batch in begun.served(begun.remaining()):
        seen.append(rows(batch))
        passes.finish_step()
        if len(seen) == num_batches:
            break
    return passes, seen


def test_a_pass_that_was_broken_off_can_be_gone_on_with():
    loader = DataLoader(Noise(), 3)
    passes, seen = left_after(loader, 2)
    passes.reopen()
    following = passes.begin(loader, 1, 0)
    rest = [rows(batch) for batch in following.served(following.remaining())]
    assert seen + rest == walk(loader)


@pytest.mark.parametrize("make", [lambda: DataLoader(Noise(), 3), lambda: Stateful(), lambda: [1]])
def test_a_pass_that_was_broken_off_is_over_when_another_begins(make):
    passes, _ = left_after(make(), 1)
    passes.begin(make(), 1, 0)
    other = Passes()
    other.resume(passes.state())
    assert list(other.begin(make(), 1, 0).remaining()) == []
    assert list(other.begin(make(), 1, 0).remaining()) != []


def test_passes_that_are_still_to_be_resumed_stay_in_the_state():
    passes, _ = left_after(DataLoader(Noise(), 3), 1)
    passes.begin(DataLoader(Noise(), 3), 1, 0)
    other = Passes()
    other.resume(passes.state())
    other.begin(DataLoader(Noise(), 3), 1, 0)
    assert len(other.state()["passes"]) == 2


def test_an_epoch_that_begins_fewer_passes_than_it_had_is_refused_once():
    passes, _ = left_after(DataLoader(Noise(), 3), 1)
    other = Passes()
    other.resume(passes.state())
    with pytest.raises(CheckpointProblem, match=r"had begun 1 passes .* began 0 now"):
        other.end_epoch()
    other.end_epoch()


def test_the_generator_of_the_loader_is_kept_for_the_next_epoch():
    def loader():
        return DataLoader(Noise(), 3, shuffle=True, generator=torch.Generator().manual_seed(3))

    passes, first = Passes(), loader()
    orders = []
    for epoch in range(2):
        begun = passes.begin(first, 1, epoch)
        orders.append(indices(rows(batch) for batch in begun.served(begun.remaining())))
        passes.end_epoch()
        if epoch == 0:
            state = passes.state()
    other = Passes()
    other.resume(state)
    begun = other.begin(loader(), 1, 1)
    again = indices(rows(batch) for batch in begun.served(begun.remaining()))
    assert again == orders[1] != orders[0]


def test_a_worker_sees_the_users_data_set():
    seen = DataLoader(Named(), 2, num_workers=1, worker_init_fn=name_worker)
    assert walk_first(seen) == ["Named 7", "Named 7"]


class Named(Dataset):
    """Its samples say what a worker finds."""

    number = 0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> str:
        return f"{type(get_worker_info().dataset).__name__} {self.number}"


def name_worker(worker: int) -> None:
    get_worker_info().dataset.number = 7


def walk_first(loader):
    begun = Passes().begin(loader, 1, 0)
    return next(begun.served(begun.remaining()))


def test_a_data_set_that_changed_its_size_is_refused():
    with pytest.raises(CheckpointProblem, match="had 10 samples when the epoch began, and has 11"):
        resumed(DataLoader(Noise(), 3), 2, DataLoader(Noise(11), 3))


def test_a_batch_that_was_given_and_not_finished_is_given_again():
    passes = Passes()
    begun = passes.begin(DataLoader(range(6), 2), 1, 0)
    iterator = begun.served(begun.remaining())
    next(iterator)
    passes.finish_step()
    next(iterator)
    other = Passes()
    other.resume(passes.state())
    following = other.begin(DataLoader(range(6), 2), 1, 0)
    rest = [batch.tolist() for batch in following.served(following.remaining())]
    assert rest == [[2, 3], [4, 5]]


def test_a_loader_of_another_kind_is_refused():
    expected = "whose place is kept by indices, and this list is one by skipping"
    with pytest.raises(CheckpointProblem, match=expected):
        resumed(DataLoader(Noise(), 3), 2, [1, 2, 3])


class Stateful:
    """A loader that can be saved, as torchdata's StatefulDataLoader."""

    num_workers = 0

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self):
        while self.next < 4:
            self.next += 1
            yield [[float(self.next)]]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_a_stateful_loader_is_restored_by_itself():
    seen, rest = resumed(Stateful(), 2, Stateful())
    assert [batch[0][0] for batch in seen + rest] == [1, 2, 3, 4]


def test_a_stateful_loader_with_workers_is_named_as_inexact():
    loader = Stateful()
    loader.num_workers = 2
    passes = Passes()
    passes.begin(loader, 1, 0)
    assert passes.inexact() == ["the workers of a Stateful draw new seeds when it is resumed"]


class Stream(IterableDataset):
    """Samples without indices."""

    def __iter__(self):
        return iter([[float(index)] for index in range(10)])


@pytest.mark.parametrize("loader", [DataLoader(Stream(), 2), [[[1.0]], [[2.0]], [[3.0]]]])
def test_any_other_loader_is_walked_again_and_named_as_inexact(loader):
    passes = Passes()
    begun = passes.begin(loader, 1, 0)
    iterator = begun.served(begun.remaining())
    next(iterator)
    passes.finish_step()
    reasons = passes.inexact()
    assert len(reasons) == 1
    assert "that can't tell its order is walked again from its start" in reasons[0]
    state = passes.state()
    rest = [str(batch) for batch in iterator]
    other = Passes()
    other.resume(state)
    following = other.begin(loader, 1, 0)
    assert [str(batch) for batch in following.served(following.remaining())] == rest


def test_a_batch_without_its_step_is_named_as_inexact():
    passes = Passes()
    begun = passes.begin(DataLoader(Noise(), 3), 1, 0)
    iterator = begun.served(begun.remaining())
    next(iterator)
    assert passes.inexact() == ["saved between batch 1 of the epoch and its step()"]
    passes.finish_step()
    assert passes.inexact() == []
