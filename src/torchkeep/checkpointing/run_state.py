"""All that a run goes on with: what is trained, how far it is, and which samples come next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchkeep.checkpointing.doctor.generators import Uncaptured
from torchkeep.checkpointing.progress import Progress
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.checkpointing.resuming import check_is_of_run
from torchkeep.checkpointing.sample_order import Passes, regrouped
from torchkeep.checkpointing.state.capturing import (
    capture,
    capture_gradients,
    restore,
    restore_gradients,
)
from torchkeep.checkpointing.state.encoding import State
from torchkeep.checkpointing.state.gradient_order import (
    fixed_orders,
    show_gradients,
    watch_gradients,
)
from torchkeep.checkpointing.state.kinds import ITEMS, is_plain_value
from torchkeep.checkpointing.state.rng import capture_rng, seed_all, undisturbed
from torchkeep.checkpointing.state.walking import entries, leaves
from torchkeep.errors import CheckpointProblem, WrongArgument


class RunState:
    """What a run goes on with, which is captured as a whole, and put back as a whole.

    A resumed run is put back twice. The first time is at once, so that the program sees it; the
    second is where the loop really goes on, since what the program does in between (it builds an
    epoch's loader, draws a number) it had done before the checkpoint as well.

    Args:
        objects: what is trained, by name; None counts as absent.
        seed: what the data's randomness is seeded from; None for torch's initial seed.

    Attributes:
        objects: likewise.
        seed: the number itself.
        progress: how far the run is.
        passes: the running epoch's walks over its loaders.

    Raises:
        WrongArgument: an object is a plain value, which can't be put back.
    """

    def __init__(self, objects: Mapping[str, Any], seed: int | None) -> None:
        _check_objects(objects)
        self.objects = objects
        self.seed = torch.initial_seed() if seed is None else seed
        self.progress = Progress()
        self.passes = Passes()
        self._uncaptured = Uncaptured()
        self._pending: State | None = None
        self._is_in_epoch = False

    # --- Captured, and put back ----------------------------------------------------------------

    def capture(self) -> State:
        """Return the state of live tensors; its `inexact` says what it lacks."""
        state = capture(self.objects, copy=False)
        state["progress"] = self.progress.state()
        state["data"] = {"seed": self.seed, **self.passes.state()}
        state["inexact"] += self.passes.inexact()
        state["inexact"] += fixed_orders(leaves(self.objects))
        state["inexact"] += self._uncaptured.inexact(is_in_epoch=bool(self.passes.begun))
        if self.passes.has_leftover:
            state["gradients"] = capture_gradients(self.objects, state["inexact"])
        if self.progress.num_steps_in_epoch and not self.passes.begun:
            state["inexact"].append("the epoch's batches were not taken from batches()")
        return state

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of how far the run is, and of what can't be captured."""
        return {
            "step": self.progress.step,
            "epoch": self.progress.epoch,
            "batch": self.passes.num_batches,
            "metrics": self.progress.latest(),
            "inventory": [item.to_json() for item in self._uncaptured.findings],
        }

    def resume(self, state: State, path: Path) -> None:
        """Go on where a checkpoint was made.

        Args:
            state: what `capture` returned then.
            path: the checkpoint, for messages.

        Raises:
            DamagedFile: it is not of a run.
            CheckpointProblem: it is of another model or optimizer.
        """
        check_is_of_run(state, path)
        try:
            self._put_back(state)
        except CheckpointProblem as error:
            advice = f"{error.advice} Or start in another folder.".lstrip()
            raise CheckpointProblem(f"{path}: {error.problem}", advice=advice) from None
        self.seed = state["data"]["seed"]
        self.passes.resume(state["data"])
        self._pending = state
        self._is_in_epoch = False

    def regroup(self, state: State, data: Sequence[dict[str, Any]], ranks: Ranks) -> State:
        """Return a state for a rank of another number of them than have saved it.

        Args:
            state: what the first of them had.
            data: where each of them was in the epoch.
            ranks: who goes on.

        Raises:
            CheckpointProblem: what is left of the epoch can't be shared out.
        """
        regrouped_data = {**state["data"], **regrouped(data, ranks.rank, ranks.size)}
        found: State = {**state, "data": regrouped_data}
        if not ranks.is_first:
            # With the first one's generators all ranks would drop the same units.
            with undisturbed():
                seed_all(state["data"]["seed"], "rank", ranks.rank, state["progress"]["step"])
                own = capture_rng()
            found["rng"] = {name: item for name, item in own.items() if name != "cuda"}
        return found

    def watch(self) -> None:
        """Note from now on what can only be seen while the training runs."""
        watch_gradients(leaves(self.objects))

    def settle(self) -> None:
        """Have what several ranks do together as it was; all of them call it after `resume`."""
        state = self._pending
        for module, saved in _modules(state["objects"], self.objects) if state else ():
            show_gradients(module, saved.get("gradient_orders", {}))

    def _put_back(self, state: State) -> None:
        shared = {k: v for k, v in self.objects.items() if k in state["objects"]}
        restore(state, shared)
        restore_gradients(shared, state.get("gradients", {}))
        self.progress = Progress(**deepcopy(state["progress"]))

    def _put_back_again(self, *, keep: bool = False) -> None:
        """Put a resumed run back at the very point where it goes on; `keep` for a later point."""
        if self._pending is not None:
            self._put_back(self._pending)
            self._pending = self._pending if keep else None

    # --- The loop ------------------------------------------------------------------------------

    @property
    def is_resuming(self) -> bool:
        """Whether the next walk over a loader is one that the checkpoint was in."""
        return self.passes.num_to_resume > 0

    def begin_epoch(self) -> None:
        """Begin an epoch, or go on with one that the loop broke off."""
        if self._is_in_epoch:
            self.passes.reopen()
        elif not self.is_resuming:
            self._put_back_again()
        self._is_in_epoch = True

    def end_epoch(self) -> None:
        """Count a finished epoch.

        Raises:
            CheckpointProblem: a resumed one began fewer walks than it had when it was saved.
        """
        self._is_in_epoch = False
        self._pending = None
        self.passes.end_epoch()
        self.progress.end_epoch()

    def look_at(self, loader: Iterable[Any]) -> None:
        """Note what a loader draws from that nobody captures."""
        self._uncaptured.look_at(self.objects, loader)

    def batches(self, loader: Iterable[Any], before_next: Callable[[], object]) -> Iterator[Any]:
        """Yield the batches of a loader, in a resumed epoch those that are left.

        Args:
            loader: what to walk over.
            before_next: is called whenever the loop asks for another one.

        Raises:
            CheckpointProblem: the data set has changed in the middle of an epoch.
        """
        resumes = self.is_resuming
        if not resumes:
            self._put_back_again()
        following = self.passes.begin(loader, self.seed, self.progress.epoch)
        iterator = following.remaining()
        if resumes:
            # Only now: making an iterator, and whatever the loop did before, may have drawn from
            # the generators that the rest of the epoch goes on with.
            self._put_back_again(keep=self.is_resuming)
        yield from following.served(iterator, before_next=before_next)

    def order_of_replica(self) -> str:
        """Return a digest of the samples that this rank trains a DDP on; empty if unknown.

        No two ranks should have the same. Where a model is spread otherwise, they may.
        """
        modules = (item for item in leaves(self.objects) if isinstance(item, nn.Module))
        is_replica = any(
            isinstance(item, DistributedDataParallel)
            for module in modules
            for item in module.modules()
        )
        return self.passes.begun[0].order_digest() if is_replica and self.passes.begun else ""

    def finish_step(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Count a step of the optimizer that measured `values`."""
        self.progress.add(values)
        self.passes.finish_step()


def _modules(nodes: Mapping[Any, Any], objects: Any) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield the modules among objects, with the state that each was saved with."""
    for key, item in entries(objects):
        node = nodes.get(key)
        if node is None:
            continue
        if isinstance(item, nn.Module) and node["kind"] == "module":
            yield item, node["state"]
        elif type(item) in (dict, list) and node["kind"] == ITEMS:
            yield from _modules(node["items"], item)


def _check_objects(objects: Mapping[str, Any]) -> None:
    for name, item in objects.items():
        if item is not None and name != "extra" and is_plain_value(item):
            raise WrongArgument(
                f"{name} is a {type(item).__name__} without state_dict() and load_state_dict()",
                advice="Pass the object itself, not its state_dict(); plain values go into extra.",
            )
