"""How a network is trained by one or several processes.

    Strategy    one process, and nothing to share
    Replicated  each process has the whole network; DistributedDataParallel averages the gradients
    Sharded     each process has a piece of each parameter; that is FSDP2, `fully_shard`

After a step all is the same on all ranks, buffers as well: what they gather from the data, as a
BatchNorm does, is the mean over the ranks. Hence it does not matter which of them is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from torchkeep.checkpointing.state.sharded import like, whole_of
from torchkeep.loading import load, load_into
from torchkeep.training.data.shares import SharedBatches
from torchkeep.training.diagnosis.trial import trial
from torchkeep.training.distributed.sharding import shard
from torchkeep.training.loop import Batch, Loss
from torchkeep.training.settings import Settings


class Strategy:
    """How a network is trained by one or several processes: here, as one process does it.

    Args:
        model: the network.
        ema: its moving average, if there is one.
        settings: how it is trained.

    Attributes:
        computing: what is called in training.
    """

    def __init__(self, model: nn.Module, ema: nn.Module | None, settings: Settings) -> None:
        self.model, self.ema, self.settings = model, ema, settings
        self.computing: Any = torch.compile(model) if settings.compile else model

    def begin_epoch(self, try_batch: Callable[[Any], torch.Tensor]) -> None:
        """Get ready to train what is trainable now.

        Args:
            try_batch: calls what it is given on a batch like those to come, and returns its loss.
        """

    def batches(self, batches: Iterable[Batch], begun: Callable[[], int]) -> Iterable[Batch]:
        """Return the batches of an epoch, to be trained on.

        Args:
            batches: the batches.
            begun: returns how many batches were finished before the first of them.
        """
        del begun
        return batches

    def weighed(self, loss_fn: Loss, class_weights: torch.Tensor | None) -> Loss:
        """Return the loss such that its mean over the ranks is the mean over all samples.

        Args:
            loss_fn: the mean over some samples.
            class_weights: what a sample of each class counts in it; None for 1.
        """
        del class_weights
        return loss_fn

    def agreed(self, loss: float) -> float:
        """Return the loss of a step over all ranks, and have buffers that are alike on them."""
        return loss

    def plain(self, module: nn.Module) -> nn.Module:
        """Return a module with its whole tensors, on the first rank."""
        return module

    def load(self, module: nn.Module, path: Path) -> None:
        """Load a file's weights into a module."""
        load_into(module, path)


class _Together(Strategy):
    """What both ways to share have in common.

    Args:
        model: the network, alike on all ranks.
        ema: its moving average, if there is one.
        settings: how it is trained.
        shares: says what each rank has of a batch.
    """

    def __init__(
        self, model: nn.Module, ema: nn.Module | None, settings: Settings, shares: SharedBatches
    ) -> None:
        self.model, self.ema, self.settings = model, ema, settings
        self.computing = model
        self._shares = shares
        self._count, self._weight = 0, 1.0

    def batches(self, batches: Iterable[Batch], begun: Callable[[], int]) -> Iterator[Batch]:
        number, is_as_usual = -1, True
        for batch in batches:
            is_first = number < 0
            number = begun() if is_first else number + 1
            num_done, accumulate = number + 1, self.settings.accumulate
            is_last = num_done >= len(self._shares)
            is_near_end = num_done + 1 >= len(self._shares)
            self._count, self._weight = self._shares.share(number)
            # To ask costs a message. What others began is seen in the first batch that is left, or
            # in the last two, where it is dealt out otherwise.
            if is_first or is_near_end or not is_as_usual:
                is_as_usual = self._look_at(len(batch[1])) and is_as_usual
            # How many batches are to come of an epoch that other ranks began, nobody knows.
            is_sent = is_last or num_done % accumulate == 0 or not is_as_usual
            with self._sending() if is_sent else self._not_sending():
                yield batch

    def _look_at(self, count: int) -> bool:
        """Return whether all ranks have as many samples as they should, else weigh what they have.

        They have not in the rest of an epoch that another number of ranks began.
        """
        device = next(self.model.parameters()).device
        told = torch.tensor([count, count != self._count], device=device)
        distributed.all_reduce(told)
        total, num_unusual = told.tolist()
        if num_unusual:
            self._weight = distributed.get_world_size() * count / total
        return not num_unusual

    def _sending(self) -> AbstractContextManager[object]:
        """Return a context in which a backward pass averages gradients over the ranks."""
        return nullcontext()

    def _not_sending(self) -> AbstractContextManager[object]:
        """Return a context in which it does not."""
        raise NotImplementedError

    def weighed(self, loss_fn: Loss, class_weights: torch.Tensor | None) -> Loss:
        def loss_of_all(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            loss = loss_fn(outputs, labels)
            # Of labels that are shares, PyTorch takes the mean without weights.
            if class_weights is None or labels.ndim > 1:
                return loss * self._weight
            own = class_weights[labels].sum() * (self._weight > 0)
            of_all = own.clone()
            distributed.all_reduce(of_all)
            return loss * (own / of_all * distributed.get_world_size())

        return loss_of_all

    def agreed(self, loss: float) -> float:
        """Return the mean of a step's loss over the ranks, and replace buffers by their means.

        In float64, in which the mean of equal numbers is that number, so that constants stay.
        """
        buffers = [item for item in self.model.buffers() if item.is_floating_point()]
        device = next(self.model.parameters()).device
        told = torch.tensor([loss], dtype=torch.float64, device=device)
        flat = torch.cat([told, *(item.detach().flatten().double() for item in buffers)])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        means = torch.split(flat[1:], [item.numel() for item in buffers])
        for item, mean in zip(buffers, means, strict=True):
            item.copy_(mean.view(item.shape))
        return float(flat[0])


# Newer versions of PyTorch have another name for it.
_IS_NEW = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
_KEEPING_BUFFERS: Any = {"forward_sync_buffers" if _IS_NEW else "broadcast_buffers": False}
"""Has DDP leave buffers as they are: `agreed` makes them alike."""


class Replicated(_Together):
    """A network of which each rank has all, by DistributedDataParallel."""

    _trained: frozenset[str] = frozenset()

    def begin_epoch(self, try_batch: Callable[[Any], torch.Tensor]) -> None:
        """Wrap the network, if something else is trainable than before.

        DDP knows the parameters of when it was made, and arranges the gradients in the order in
        which the first backward pass makes them. The order in which numbers are added depends on
        that, so a pass is made here: else a run would go on with other bits than it would have had.
        """
        trained = {name: x for name, x in self.model.named_parameters() if x.requires_grad}
        if self._trained == trained.keys():
            return
        self._trained = frozenset(trained)
        with _as_before(self.model):
            try_batch(self.model).backward()  # type: ignore[no-untyped-call]
            has_unused = any(item.grad is None for item in trained.values())
            self.model.zero_grad()
            self._ddp = DistributedDataParallel(
                self.model, find_unused_parameters=has_unused, **_KEEPING_BUFFERS
            )
            self.computing = torch.compile(self._ddp) if self.settings.compile else self._ddp
            if not has_unused:  # else the order stays as it is
                try_batch(self.computing).backward()  # type: ignore[no-untyped-call]
            self.model.zero_grad()

    def _not_sending(self) -> AbstractContextManager[object]:
        return self._ddp.no_sync()


class Sharded(_Together):
    """A network of which each rank has a piece, by FSDP2.

    The first rank keeps a copy on the CPU, whose values are none, to write files from.
    """

    def __init__(
        self, model: nn.Module, ema: nn.Module | None, settings: Settings, shares: SharedBatches
    ) -> None:
        super().__init__(model, ema, settings, shares)
        self._is_first = distributed.get_rank() == 0
        self._copy = copy.deepcopy(model).cpu() if self._is_first else model
        shard(model)
        if ema is not None:
            shard(ema.get_submodule("module"))

    def _sending(self) -> AbstractContextManager[object]:
        return self._syncing(True)

    def _not_sending(self) -> AbstractContextManager[object]:
        return self._syncing(False)

    @contextmanager
    def _syncing(self, flag: bool) -> Iterator[None]:
        model: Any = self.model
        model.set_requires_gradient_sync(flag)
        yield

    @torch.no_grad()
    def plain(self, module: nn.Module) -> nn.Module:
        """Gather a module's tensors, one by one, on the first rank. All ranks call it."""
        places = self._copy.state_dict()
        for name, item in module.state_dict().items():
            full = whole_of(item)
            if self._is_first:
                places[name].copy_(full)
        return self._copy

    @torch.no_grad()
    def load(self, module: nn.Module, path: Path) -> None:
        """Load of a file what this rank has of it."""
        saved = load(path, select="auto")
        for name, item in module.state_dict().items():
            item.copy_(like(item, saved[name]))


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Put a network's buffers, and all random generators, back when the block ends."""
    before = [(item, item.clone()) for item in model.buffers()]
    with trial(()):
        yield
    with torch.no_grad():
        for item, value in before:
            item.copy_(value)


def strategy_of(
    model: nn.Module, ema: nn.Module | None, settings: Settings, shares: SharedBatches | None
) -> Strategy:
    """Return how this process trains a network, alone or with others."""
    if shares is None:
        return Strategy(model, ema, settings)
    return (Sharded if settings.shard else Replicated)(model, ema, settings, shares)
