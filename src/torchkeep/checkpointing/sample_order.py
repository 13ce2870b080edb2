"""Which samples come in which order, so that a resumed epoch goes on with the next one.

A `Pass` is one walk over a loader. For a map-style `DataLoader` the whole list of index batches
is drawn at the start (from the loader's own batch sampler, and so from the generator that it
always draws from) and kept in the checkpoint with a cursor. The batches are then served by an
inner loader that is given these index batches, so nothing depends on how far the workers had
fetched ahead.

Every sample is fetched under Python's, NumPy's and torch's generators seeded from (run seed,
epoch, pass, index, occurrence), and a batch is collated under what its last sample left. Hence
the samples are the same with any number of workers and after any resume, and augmentation in the
main process does not disturb the generators that the training draws from. A sample drawn twice in
an epoch is augmented in two ways: that is the occurrence.

A loader with `state_dict` and `load_state_dict` is restored by them. Any other iterable is walked
again from its start, and what was seen is skipped; that it then goes on with the same batches
can't be known, and is named as inexact.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from torchkeep.checkpointing.rng import seed_all, undisturbed
from torchkeep.errors import CheckpointProblem


class Pass:
    """One walk over a loader, which can be left and gone on with in another process.

    Attributes:
        loader: the user's loader.
        num_given: batches given to the user's loop.
        num_finished: batches given before the last finished step: where a resume goes on.
        is_over: whether the loop has left it.
    """

    kind: ClassVar[str]
    """What the checkpoint calls this way to walk."""

    def __init__(self, loader: Iterable[Any], key: tuple[int, int, int]) -> None:
        """Take the loader, and the `(run seed, epoch, number of the pass)` to seed from."""
        self.loader = loader
        self.key = key
        self.num_given = self.num_finished = 0
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
        raise NotImplementedError

    def served(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yield what `remaining` returned, and count it."""
        try:
            for batch in iterator:
                self.num_given += 1
                yield batch
        finally:
            self.is_over = True

    def finish_step(self) -> None:
        """Count what was given so far as finished."""
        self.num_finished = self.num_given

    def inexact(self) -> list[str]:
        """Return why a resume from here may not be exact."""
        if self.is_over or self.num_given == self.num_finished:
            return []
        return [f"saved between batch {self.num_given} of the epoch and its step()"]


class Passes:
    """The passes of the running epoch, in the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[Pass] = []
        self._saved: list[dict[str, Any]] = []
        self._generators: dict[int, list[torch.Tensor]] = {}
        self._loaders: dict[int, Iterable[Any]] = {}

    def begin(self, loader: Iterable[Any], seed: int, epoch: int) -> Pass:
        """Return the epoch's next pass: the one that the checkpoint was in, or a new one."""
        number = len(self.begun)
        following = _open_pass(loader, (seed, epoch, number))
        for generator, state in zip(
            _generators_of(loader), self._generators.pop(number, ()), strict=False
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
        for item in self.begun:
            item.finish_step()

    def end_epoch(self) -> None:
        """Forget the passes; the generators of their loaders are still watched."""
        self.begun.clear()
        self._saved.clear()

    def inexact(self) -> list[str]:
        """Return why a resume from here may not be exact."""
        return [reason for item in self.begun for reason in item.inexact()]

    def state(self) -> dict[str, Any]:
        """Return what `resume` needs."""
        generators = {
            number: [generator.get_state() for generator in _generators_of(loader)]
            for number, loader in self._loaders.items()
        }
        return {
            "passes": [item.state() for item in self.begun],
            "generators": self._generators | generators,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Have the next passes go on where those of `state` were."""
        self.begun.clear()
        self._saved = list(state["passes"])
        self._generators = dict(state["generators"])


def _open_pass(loader: Iterable[Any], key: tuple[int, int, int]) -> Pass:
    """Return the most exact kind of pass that `loader` allows."""
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return _StatefulPass(loader, key)
    if _has_known_indices(loader):
        return _IndexedPass(loader, key)
    return _ReplayedPass(loader, key)


def _has_known_indices(loader: Iterable[Any]) -> bool:
    """Tell whether `loader` fetches a finite list of indices that can be drawn beforehand."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return False
    return not isinstance(loader.dataset, IterableDataset) and hasattr(
        _index_sampler(loader), "__len__"
    )


def _index_sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _generators_of(loader: Iterable[Any]) -> list[torch.Generator]:
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

    def begin(self) -> None:
        self.order = [_plain(item) for item in _index_sampler(self.loader)]
        self.packed = _packed(self.order)

    def state(self) -> dict[str, Any]:
        state = super().state()
        if self.is_over:
            return state
        return {**state, "order": self.packed, "num_samples": self._num_samples()}

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

    def _num_samples(self) -> int | None:
        dataset = self.loader.dataset
        return len(dataset) if hasattr(dataset, "__len__") else None

    def remaining(self) -> Iterator[Any]:
        jobs = _jobs(self.order)[self.num_given :]
        return iter(_inner_loader(self.loader, jobs, self.key))


class _Job(NamedTuple):
    """A batch to fetch."""

    indices: list[Any]
    """The data set's indices."""
    occurrences: list[int]
    """How often each index came before in this epoch."""
    is_batch: bool
    """False if the loader gives samples one by one (`batch_size=None`)."""


def _jobs(order: list[Any]) -> list[_Job]:
    seen: Counter[Any] = Counter()
    jobs = []
    for item in order:
        occurrences = []
        for index in _indices(item):
            occurrences.append(seen[repr(index)])
            seen[repr(index)] += 1
        jobs.append(_Job(_indices(item), occurrences, isinstance(item, list)))
    return jobs


def _indices(item: Any) -> list[Any]:
    return item if isinstance(item, list) else [item]


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
            samples = [
                self._sample(index, occurrence)
                for index, occurrence in zip(job.indices, job.occurrences, strict=True)
            ]
            return self.collate(samples if job.is_batch else samples[0])

    def _sample(self, index: Any, occurrence: int) -> Any:
        seed_all(*self.key, index, occurrence)
        return self.dataset[index]


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


def _plain(item: Any) -> Any:
    """Return a batch of indices, or an index, with integers of NumPy or torch as Python's."""
    if isinstance(item, list | tuple) or (isinstance(item, torch.Tensor) and item.dim()):
        return [_plain_index(index) for index in item]
    return _plain_index(item)


def _plain_index(index: Any) -> Any:
    return operator.index(index) if hasattr(index, "__index__") else index


def _packed(order: list[Any]) -> Any:
    """Return the order as two tensors if all its indices are integers, else as it is."""
    batches = [_indices(item) for item in order]
    flat = [index for batch in batches for index in batch]
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

    def remaining(self) -> Iterator[Any]:
        return iter(self.loader)

    def inexact(self) -> list[str]:
        reasons = super().inexact()
        if getattr(self.loader, "num_workers", 0) and not self.is_over:
            kind = type(self.loader).__name__
            reasons.append(f"the workers of a {kind} draw new seeds when it is resumed")
        return reasons


class _ReplayedPass(Pass):
    kind = "skipping"

    def remaining(self) -> Iterator[Any]:
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
