"""Batches of known indices, fetched so that each sample is the same wherever it is fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from torchkeep.checkpointing.preemption import SignalWatch
from torchkeep.checkpointing.state.rng import seed_all, undisturbed


class Job(NamedTuple):
    """A batch to fetch."""

    indices: list[Any]
    """The data set's indices."""
    occurrences: list[int]
    """How often each index came before in this epoch."""
    is_batch: bool
    """False if the loader does not collate (`batch_size=None`): there is one index then."""


def jobs_of(order: list[Any], *, is_batch: bool) -> list[Job]:
    """Return what is to be fetched, in this order.

    Args:
        order: batches of indices, or indices.
        is_batch: which of them.
    """
    seen: Counter[str] = Counter()
    jobs = []
    for item in order:
        indices = item if is_batch else [item]
        occurrences = []
        for index in indices:
            occurrences.append(seen[repr(index)])
            seen[repr(index)] += 1
        jobs.append(Job(indices, occurrences, is_batch))
    return jobs


class _SeededBatches(Dataset[Any]):
    """Fetches and collates whole batches, each sample under its own seed."""

    def __init__(
        self, dataset: Any, collate: Callable[[Any], Any], key: tuple[int, int, int]
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.key = key

    def __getitem__(self, job: Job) -> Any:
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


def inner_loader(
    loader: DataLoader[Any], jobs: list[Job], key: tuple[int, int, int]
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
    SignalWatch.leave_to_parent()  # after PyTorch's own handlers
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, _SeededBatches):
        # WorkerInfo is read-only for its users; `worker_init_fn` looks here for its data set.
        object.__setattr__(info, "dataset", info.dataset.dataset)
    if init is not None:
        init(worker)
