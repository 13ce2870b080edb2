"""Generators that a loader draws from and nobody captures, watched while a run goes on.

That one is there does not mean that it is used: a data set may keep the one that it was split with.
So each is compared with what it was when it was first seen. What a worker's copy of it did can't
be seen from here; but workers start anew with each epoch, from what is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchkeep.checkpointing.doctor.findings import Finding
from torchkeep.checkpointing.doctor.inventory import inventory, private_generators
from torchkeep.checkpointing.state.capturing import capture
from torchkeep.checkpointing.state.encoding import fingerprint


@dataclass(frozen=True, slots=True)
class _Seen:
    """A generator as it was when it was first seen."""

    place: str
    generator: object
    state: str
    has_workers: bool

    @property
    def advice(self) -> str:
        """What to do about it, to be told after what it is."""
        if self.has_workers:
            return " where workers have copies of it: draw from the global generators instead"
        return ": pass it in extra={...}, or draw from the global generators"


class Uncaptured:
    """What the loaders of a run have that a checkpoint can't hold."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._loaders: list[object] = []
        self._seen: list[_Seen] = []

    def look_at(self, objects: Mapping[str, object], loader: Iterable[Any]) -> None:
        """Look at a loader, if it is a new one."""
        if any(loader is known for known in self._loaders):
            return
        self._loaders.append(loader)
        self.findings += [item for item in inventory(objects, loader) if item not in self.findings]
        has_workers = bool(getattr(loader, "num_workers", 0))
        self._seen += [
            _Seen(place, generator, _state_of(generator), has_workers)
            for place, generator in private_generators(objects, loader)
        ]

    def inexact(self, *, is_in_epoch: bool) -> list[str]:
        """Return why a resume from here may not be exact.

        Args:
            is_in_epoch: whether workers may have drawn from their copies and have more to draw.
        """
        return [
            f"{item.place} is a generator that is not captured{item.advice}"
            for item in self._seen
            if (is_in_epoch if item.has_workers else _state_of(item.generator) != item.state)
        ]


def _state_of(generator: object) -> str:
    return fingerprint(capture({"generator": generator}, rng=False))
