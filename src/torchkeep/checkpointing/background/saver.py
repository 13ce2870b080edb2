"""States on their way to the disk: while the loop waits, or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchkeep.checkpointing.background.arena import Arena, free_nbytes
from torchkeep.checkpointing.background.cuda import CudaCopies
from torchkeep.checkpointing.background.snapshot import Snapshot
from torchkeep.checkpointing.background.stepping import hookable_optimizers, steady_addresses
from torchkeep.checkpointing.background.thread import Background
from torchkeep.checkpointing.layout import placement_for
from torchkeep.checkpointing.ranks import num_ranks_here
from torchkeep.checkpointing.runs.folder import RunFolder
from torchkeep.checkpointing.state.encoding import State, encode
from torchkeep.checkpointing.state.sharded import Part, local_of, part_of
from torchkeep.saving.leaves import check_has_values
from torchkeep.tensors import first_names


class _Changed(Exception):
    """Tensors were changed while they were copied."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.names = names


def _check_unchanged(snapshot: Snapshot) -> None:
    if names := tuple(snapshot.changed()):
        raise _Changed(names)


def part_to_save(state: State) -> Part:
    """Return what this rank has of a state, taken apart.

    Raises:
        SaveRefused: a value can't be kept.
    """
    part = part_of(*encode(state))
    for name, tensor in part.tensors.items():
        check_has_values(local_of(tensor), name)
    return part


class Saver:
    """Writes states into a run's folder, one at a time.

    Beside the loop it writes copies: see `Snapshot`. Those of what only an optimizer's step changes
    are made by the writing thread; the optimizers are asked to tell before they step.

    Args:
        folder: the run's.
        objects: what is saved; the optimizers are found in it.
        max_copy_nbytes: what the copies may take; None for half of the memory that is free.
    """

    def __init__(
        self, folder: RunFolder, objects: Mapping[str, Any], max_copy_nbytes: int | None
    ) -> None:
        self._folder = folder
        self._objects = objects
        self._max_copy_nbytes = max_copy_nbytes
        self._background = Background()
        self._arena = Arena()
        self._cuda_copies = CudaCopies()
        self._snapshot: Snapshot | None = None
        self._unsteady: frozenset[str] = frozenset()
        self._given_up: tuple[str, ...] = ()
        self._hooks: list[Any] = []

    def watch(self) -> None:
        """Have the optimizers tell before they step."""
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step)
            for optimizer in hookable_optimizers(self._objects)
        ]

    def _before_step(self, *_: object) -> None:
        """Have a snapshot copy what is left: an optimizer is about to change it."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.let_go()

    def save(self, path: Path, part: Part, facts: Mapping[str, Any], *, beside: bool) -> None:
        """Write a state of live tensors; `beside` the loop if there is memory for that.

        Call `wait` before. What fails beside the loop is raised by `wait` or `check`.
        """
        snapshot = self._snapshot_of_all(path, part) if beside else None
        if snapshot is None:
            here = {name: local_of(tensor) for name, tensor in part.tensors.items()}
            self._write(path, replace(part, tensors=here), facts)
        else:
            self._snapshot = snapshot
            self._background.start(lambda: self._write_copies(path, snapshot, part, facts))

    def _snapshot_of_all(self, path: Path, part: Part) -> Snapshot | None:
        """Return a snapshot that has begun on all ranks; None if one has no memory for it.

        Then all write while the loop waits: what fails has to be told at the same place on all.
        """
        ranks = self._folder.ranks
        snapshot = ranks.each(lambda: self._snapshot_of(path, part))
        if not ranks.any(snapshot is None):
            return snapshot
        if snapshot is not None:
            snapshot.let_go()
        return None

    def _snapshot_of(self, path: Path, part: Part) -> Snapshot | None:
        """Return a snapshot that has begun; None if there is no memory for it."""
        names = first_names({name: local_of(tensor) for name, tensor in part.tensors.items()})
        placement = placement_for(path, part, names, self._folder.ranks)
        steady = steady_addresses(self._objects)
        snapshot = Snapshot(part.tensors, names, steady, self._unsteady, placement)
        on_cpu, on_device = snapshot.nbytes, snapshot.device_nbytes
        if on_cpu > self._arena.nbytes or on_device > self._cuda_copies.nbytes:
            limit = self._max_copy_nbytes
            free = free_nbytes() // (2 * num_ranks_here())
            if on_cpu + on_device > (free if limit is None else limit):
                return None
        try:
            snapshot.begin(self._arena, self._cuda_copies)
        except (OSError, MemoryError):  # the system has less than it said
            return None
        return snapshot

    def _write_copies(
        self, path: Path, snapshot: Snapshot, part: Part, facts: Mapping[str, Any]
    ) -> None:
        """Write a snapshot, unless its tensors were changed while they were copied."""
        snapshot.wait()
        self._write(path, replace(part, tensors=snapshot.tensors()), facts, snapshot)

    def _write(
        self, path: Path, part: Part, facts: Mapping[str, Any], snapshot: Snapshot | None = None
    ) -> None:
        def check() -> None:
            if snapshot is not None:
                _check_unchanged(snapshot)

        try:
            is_beside = snapshot is not None
            self._folder.write(path, part, facts, background=is_beside, check=check)
        except _Changed as changed:  # perhaps on another rank, whose copies they were
            self._given_up = changed.names

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._background.is_busy

    def check(self) -> tuple[str, ...]:
        """Raise what failed beside the loop; return the tensors for which a state was given up.

        They were changed while they were copied, and are copied at once from now on.
        """
        self._background.check()
        return self._unsteady_ones()

    def wait(self) -> tuple[str, ...]:
        """Return when nothing is being written; results and errors are those of `check`."""
        self._background.wait()
        return self._unsteady_ones()

    def _unsteady_ones(self) -> tuple[str, ...]:
        names, self._given_up = self._given_up, ()
        self._unsteady |= frozenset(names)
        return names

    def close(self) -> None:
        """Wait, and let the optimizers go; nothing is raised."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._background.close()
        self._snapshot = None
