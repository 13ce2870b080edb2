"""A walk over a loader whose order is known before the first batch."""

# ruff: noqa: D102  what the methods of a walk do is said once, in `Pass`

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from torchkeep.checkpointing.sample_order.fetching import inner_loader, jobs_of
from torchkeep.checkpointing.sample_order.regrouping import dealt_out, rest_of
from torchkeep.checkpointing.sample_order.walks import Pass
from torchkeep.errors import CheckpointProblem
from torchkeep.files import digest
from torchkeep.tensors import bytes_of


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


def _is_distributed(loader: DataLoader[Any]) -> bool:
    """Whether a loader gives each rank a part of the data set, as with a DistributedSampler."""
    batch_sampler = loader.batch_sampler
    samplers = (loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    return any(hasattr(sampler, "num_replicas") for sampler in samplers)


class IndexedPass(Pass):
    """A walk over a map-style `DataLoader`, of which the whole order is drawn at the start."""

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
        if "share" in state:
            self.order = self._shared_out(state)
            self.packed = _packed(self.order)
        else:
            self.order, self.packed = _unpacked(state["order"]), state["order"]
        if state["num_samples"] != self._num_samples():
            raise CheckpointProblem(
                f"the data set had {state['num_samples']} samples when the epoch began, "
                f"and has {self._num_samples()}",
                advice="Resume with the data that the run was started with.",
            )
        if "share" in state:
            return
        if state.get("batch_size", self.loader.batch_size) != self.loader.batch_size:
            warnings.warn(
                f"the rest of the epoch has batches of {state['batch_size']}, as it began; the "
                f"loader's {self.loader.batch_size} take effect with the next epoch",
                stacklevel=5,
            )

    def _shared_out(self, state: dict[str, Any]) -> list[Any]:
        """Return the order of an epoch that other than as many ranks have begun.

        What is finished of it stands there as batches of nothing.
        """
        orders = [_unpacked(order) for order in state["orders"]]
        rest = rest_of(orders, state["batch"], state["num_samples"])
        rank, size = state["share"] if _is_distributed(self.loader) else (0, 1)
        largest = max(
            len(item) if isinstance(item, list) else 1 for some in orders for item in some
        )
        own = self.loader.batch_size or getattr(self.loader.batch_sampler, "batch_size", None)
        batches = dealt_out(rest, rank, size, own or largest)
        if not self.is_batched:
            return [None] * state["batch"] + [index for batch in batches for index in batch]
        return [[] for _ in range(state["batch"])] + batches

    def order_digest(self) -> str:
        indices = self.packed.get("indices")
        return "" if indices is None else digest(bytes_of(indices))

    def _num_samples(self) -> int | None:
        dataset = self.loader.dataset
        return len(dataset) if hasattr(dataset, "__len__") else None

    def _walk(self) -> Iterator[Any]:
        jobs = jobs_of(self.order, is_batch=self.is_batched)[self.num_given :]
        return iter(inner_loader(self.loader, jobs, self.key))


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
