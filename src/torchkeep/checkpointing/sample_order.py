"""Which samples come in which order, so that a resumed epoch goes on with the next one.

A `Pass` is one walk over a loader. For a map-style `DataLoader` the whole list of index batches
is drawn at the start and kept in the checkpoint with a cursor. It is drawn as the loader itself
draws it with `num_workers=0`: a seed for workers first, then the order, from the same generators.
The batches are then served by an inner loader that is given these index batches, so nothing
depends on how far the workers had fetched ahead.

Every sample is fetched under Python's, NumPy's and torch's generators seeded from (run seed,
epoch, pass, index, occurrence), and a batch is collated under what its last sample left. Hence
the samples are the same with any number of workers and after any resume, and augmentation in the
main process does not disturb the generators that the training draws from. A sample drawn twice in
an epoch is augmented in two ways: that is the occurrence. Where the data set itself fetches a
whole batch in one call, the unit is that call and not the sample: with `__getitems__`, and with
`batch_size=None` and a sampler that gives lists of indices.

A pass is over when its last batch was taken. One that was broken off can still be gone on with,
until the loop begins another one or ends the epoch.

A loader with `state_dict` and `load_state_dict` is restored by them. Any other iterable is walked
again from its start, and what was seen is skipped; that it then goes on with the same batches
can't be known, and is named as inexact.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from torchkeep.checkpointing.state.rng import seed_all, undisturbed
from torchkeep.errors import CheckpointProblem


class Pass:
    """One walk over a loader, which can be left and gone on with in another process.

    Attributes:
        loader: the user's loader.
        num_given: batches given to the user's loop.
        num_finished: batches given before the last finished step: where a resume goes on.
        is_left: whether the loop has left it, at its end or before.
        is_over: whether nothing of it is left to do.
    """

    kind: ClassVar[str]
    """What the checkpoint calls this way to walk."""

    def __init__(self, loader: Iterable[Any], key: tuple[int, int, int]) -> None:
        """Take the loader, and the `(run seed, epoch, number of the pass)` to seed from."""
        self.loader = loader
        self.key = key
        self.num_given = self.num_finished = 0
        self.is_left = False
        self.is_over = False

    def begin(self) -> None:
        """Start from the first batch."""

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs in order to go on after the last finished step."""
        return {"kind": self.kind, "batch": self.num_finished, "is_over": self.is_over}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where the pass of `state` was.

        Raises:
            CheckpointProblem: the loader is of another kind, or its data set has changed.
        """
        if state["kind"] != self.kind:
            raise CheckpointProblem(
                f"the epoch began with a loader whose place is kept by {state['kind']}, and this "
                f"{type(self.loader).__name__} is one by {self.kind}",
                advice="Resume with the loader that the run was started with.",
            )
        self.num_given = self.num_finished = state["batch"]
        self.is_over = state["is_over"]

    def remaining(self) -> Iterator[Any]:
        """Return an iterator over the batches from the cursor on."""
        return iter(()) if self.is_over else self._walk()

    def _walk(self) -> Iterator[Any]:
        raise NotImplementedError

    def served(
        self, iterator: Iterator[Any], before_next: Callable[[], object] = lambda: None
    ) -> Iterator[Any]:
        """Yield what `remaining` returned, and count it.

        Args:
            iterator: what `remaining` returned.
            before_next: called each time that the loop asks for more, before anything is fetched.
        """
        try:
            for batch in iterator:
                self.num_given += 1
                yield batch
                before_next()
            self.is_over = True
        finally:
            self.is_left = True

    def finish_step(self) -> None:
        """Count what was given so far as finished."""
        self.num_finished = self.num_given

    def inexact(self) -> list[str]:
        """Return why a resume from here may not be exact."""
        if self.num_given == self.num_finished:
            return []
        return [f"saved between batch {self.num_given} of the epoch and its step()"]


class Passes:
    """The passes of the running epoch, in the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[Pass] = []
        self.has_leftover = False
        """Whether the last epoch ended with batches that no step finished."""
        self._saved: list[dict[str, Any]] = []
        self._generators: dict[int, list[torch.Tensor]] = {}
        self._loaders: dict[int, Iterable[Any]] = {}

    def begin(self, loader: Iterable[Any], seed: int, epoch: int) -> Pass:
        """Return the epoch's next pass: the one that the checkpoint was in, or a new one.

        What was broken off before is now over: the loop has gone on to something else.
        """
        for item in self.begun:
            item.is_over |= item.is_left
        number = len(self.begun)
        following = _open_pass(loader, (seed, epoch, number))
        for generator, state in zip(
            generators_of(loader), self._generators.pop(number, ()), strict=False
        ):
            generator.set_state(state)
        if number < len(self._saved):
            following.resume(self._saved[number])
        else:
            following.begin()
        self._loaders[number] = loader
        self.begun.append(following)
        return following

    @property
    def num_to_resume(self) -> int:
        """How many passes of the checkpoint's epoch have not begun again."""
        return max(len(self._saved) - len(self.begun), 0)

    @property
    def num_batches(self) -> int:
        """Finished batches of the epoch's first pass."""
        return self.begun[0].num_finished if self.begun else 0

    def finish_step(self) -> None:
        """Count the batches that were given so far as finished."""
        self.has_leftover = False
        for item in self.begun:
            item.finish_step()

    def end_epoch(self) -> None:
        """Forget the passes; the generators of their loaders are still watched.

        Raises:
            CheckpointProblem: the checkpoint had more passes than the epoch began again.
        """
        begun, missing = len(self.begun), self.num_to_resume
        unfinished = any(item.num_given > item.num_finished for item in self.begun)
        self.has_leftover = self.has_leftover or unfinished
        self.begun.clear()
        self._saved.clear()
        if missing:
            raise CheckpointProblem(
                f"the epoch had begun {begun + missing} passes over batches() when it was saved, "
                f"and the same epoch began {begun} now",
                advice="Resume with the loop that the run was started with, or from a checkpoint "
                "that was saved at the end of an epoch.",
            )

    def reopen(self) -> None:
        """Have the next passes go on where those of an epoch that was broken off are."""
        if self.begun:
            self.resume(self.state())

    @property
    def is_between_steps(self) -> bool:
        """Whether every batch that was given out was finished by a step."""
        return all(item.num_given == item.num_finished for item in self.begun)

    def inexact(self) -> list[str]:
        """Return why a resume from here may not be exact."""
        return [reason for item in self.begun for reason in item.inexact()]

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs."""
        generators = {
            number: [generator.get_state() for generator in generators_of(loader)]
            for number, loader in self._loaders.items()
        }
        return {
            "passes": [*(item.state() for item in self.begun), *self._saved[len(self.begun) :]],
            "generators": self._generators | generators,
            "has_leftover": self.has_leftover,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Have the next passes go on where those of `state` were."""
        self.begun.clear()
        self.has_leftover = state["has_leftover"]
        self._saved = list(state["passes"])
        self._generators = dict(state["generators"])


def _open_pass(loader: Iterable[Any], key: tuple[int, int, int]) -> Pass:
    """Return the most exact kind of pass that `loader` allows."""
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return _StatefulPass(loader, key)
    if has_known_indices(loader):
        return _IndexedPass(loader, key)
    return _ReplayedPass(loader, key)


def has_known_indices(loader: Iterable[Any]) -> bool:
    """Tell whether `loader` fetches a finite list of indices that can be drawn beforehand."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return False
    return not isinstance(loader.dataset, IterableDataset) and hasattr(
        _index_sampler(loader), "__len__"
    )


def _index_sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def generators_of(loader: Iterable[Any]) -> list[torch.Generator]:
    """Return the private generators that `loader` draws its order from, each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None)
    holders = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    unique = {id(item): item for item in found if isinstance(item, torch.Generator)}
    return list(unique.values())


# --- Map-style loaders -------------------------------------------------------------------------


class _IndexedPass(Pass):
    kind = "indices"
    loader: DataLoader[Any]

    @property
    def is_batched(self) -> bool:
        """Whether the sampler's items are batches of indices; else each is an index, whatever."""
        return self.loader.batch_sampler is not None

    def begin(self) -> None:
        # As the plain loader's iterator does it, and in this order.
        drawn = iter(_index_sampler(self.loader))
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        self.order = [_plain(item, is_batch=self.is_batched) for item in drawn]
        self.packed = _packed(self.order)

    def state(self) -> dict[str, Any]:
        state = super().state()
        if self.is_over:
            return state
        size = self.loader.batch_size
        kept = {"order": self.packed, "num_samples": self._num_samples(), "batch_size": size}
        return state | kept

    def resume(self, state: dict[str, Any]) -> None:
        super().resume(state)
        if self.is_over:
            self.order = []
            return
        self.order, self.packed = _unpacked(state["order"]), state["order"]
        if state["num_samples"] != self._num_samples():
            raise CheckpointProblem(
                f"the data set had {state['num_samples']} samples when the epoch began, "
                f"and has {self._num_samples()}",
                advice="Resume with the data that the run was started with.",
            )
        if state.get("batch_size", self.loader.batch_size) != self.loader.batch_size:
            warnings.warn(
                f"the rest of the epoch has batches of {state['batch_size']}, as it began; the "
                f"loader's {self.loader.batch_size} take effect with the next epoch",
                stacklevel=5,
            )

    def _num_samples(self) -> int | None:
        dataset = self.loader.dataset
        return len(dataset) if hasattr(dataset, "__len__") else None

    def _walk(self) -> Iterator[Any]:
        jobs = _jobs(self.order, is_batch=self.is_batched)[self.num_given :]
        return iter(_inner_loader(self.loader, jobs, self.key))


class _Job(NamedTuple):
    """A batch to fetch."""

    indices: list[Any]
    """The data set's indices."""
    occurrences: list[int]
    """How often each index came before in this epoch."""
    is_batch: bool
    """False if the loader does not collate (`batch_size=None`): there is one index then."""


def _jobs(order: list[Any], *, is_batch: bool) -> list[_Job]:
    seen: Counter[str] = Counter()
    jobs = []
    for item in order:
        indices = item if is_batch else [item]
        occurrences = []
        for index in indices:
            occurrences.append(seen[repr(index)])
            seen[repr(index)] += 1
        jobs.append(_Job(indices, occurrences, is_batch))
    return jobs


class _SeededBatches(Dataset[Any]):
    """Fetches and collates whole batches, each sample under its own seed."""

    def __init__(
        self, dataset: Any, collate: Callable[[Any], Any], key: tuple[int, int, int]
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.key = key

    def __getitem__(self, job: _Job) -> Any:
        with undisturbed():
            if job.is_batch and _fetches_batches(self.dataset):
                seed_all(*self.key, job.indices, job.occurrences)
                return self.collate(self.dataset.__getitems__(job.indices))
            samples = [
                self._sample(index, occurrence)
                for index, occurrence in zip(job.indices, job.occurrences, strict=True)
            ]
            return self.collate(samples if job.is_batch else samples[0])

    def _sample(self, index: Any, occurrence: int) -> Any:
        seed_all(*self.key, index, occurrence)
        return self.dataset[index]


def _fetches_batches(dataset: Any) -> bool:
    """Tell whether `dataset` has a way of its own to fetch a batch, which PyTorch would take."""
    if getattr(type(dataset), "__getitems__", None) is Subset.__getitems__:
        return _fetches_batches(dataset.dataset)  # else it fetches one by one, as we do
    return bool(getattr(dataset, "__getitems__", None))


def _inner_loader(
    loader: DataLoader[Any], jobs: list[_Job], key: tuple[int, int, int]
) -> DataLoader[Any]:
    """Return a loader that fetches `jobs` in the way `loader` would.

    Its generator is private: making an iterator draws a seed for the workers, and must not move
    the global generator.
    """
    return DataLoader(
        _SeededBatches(loader.dataset, loader.collate_fn, key),
        batch_size=None,
        sampler=jobs,
        collate_fn=_as_it_is,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=partial(_begin_worker, loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=loader.prefetch_factor,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Show the user's data set, not ours, to whoever asks for the worker's, and call `init`."""
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _SeededBatches):
        # WorkerInfo is read-only for its users; `worker_init_fn` looks here for its data set.
        object.__setattr__(info, "dataset", info.dataset.dataset)
    if init is not None:
        init(worker)


def _plain(item: Any, *, is_batch: bool) -> Any:
    """Return what a sampler gave, with integers of NumPy or torch as Python's."""
    return [_plain_index(index) for index in item] if is_batch else _plain_index(item)


def _plain_index(index: Any) -> Any:
    if type(index) in (list, tuple):
        return type(index)(_plain_index(item) for item in index)
    if isinstance(index, torch.Tensor) and index.dim():
        return index
    if getattr(index, "ndim", 0):  # a NumPy array, which a checkpoint can't keep
        return index.tolist()
    return operator.index(index) if hasattr(index, "__index__") else index


def _packed(order: list[Any]) -> Any:
    """Return the order as two tensors if it has only integers and lists of them, else as it is."""
    flat = [index for item in order for index in (item if isinstance(item, list) else [item])]
    if not all(type(index) is int for index in flat):
        return {"batches": order}
    sizes = [len(item) if isinstance(item, list) else -1 for item in order]
    return {"indices": torch.tensor(flat, dtype=torch.int64), "sizes": torch.tensor(sizes)}


def _unpacked(packed: Any) -> list[Any]:
    if "batches" in packed:
        return list(packed["batches"])
    indices = iter(packed["indices"].tolist())
    return [
        next(indices) if size < 0 else [next(indices) for _ in range(size)]
        for size in packed["sizes"].tolist()
    ]


# --- Other loaders -----------------------------------------------------------------------------


class _StatefulPass(Pass):
    kind = "its own state"
    loader: Any

    def state(self) -> dict[str, Any]:
        state = super().state()
        return state if self.is_over else {**state, "loader": self.loader.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        super().resume(state)
        if not self.is_over:
            self.loader.load_state_dict(state["loader"])

    def _walk(self) -> Iterator[Any]:
        return iter(self.loader)

    def inexact(self) -> list[str]:
        reasons = super().inexact()
        if getattr(self.loader, "num_workers", 0) and not self.is_over:
            kind = type(self.loader).__name__
            reasons.append(f"the workers of a {kind} draw new seeds when it is resumed")
        return reasons


class _ReplayedPass(Pass):
    kind = "skipping"

    def _walk(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        for _ in range(self.num_given):
            next(iterator, None)
        return iterator

    def inexact(self) -> list[str]:
        reasons = super().inexact()
        if not self.is_over:
            reasons.append(
                f"a {type(self.loader).__name__} that can't tell its order is walked again from "
                "its start; use a DataLoader over a map-style data set, or one with state_dict()"
            )
        return reasons
