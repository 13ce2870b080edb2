"""The steps of a load plan, on an open file and a live model: check, write, prove."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch

from torchkeep.contents import TensorEntry, Value
from torchkeep.errors import LoadMismatch, ProofFailed
from torchkeep.files import grouped_by_size, in_parallel
from torchkeep.loading.adapting import adapted
from torchkeep.loading.report import digest_of
from torchkeep.loading.targets import Target, live_tensors
from torchkeep.loading.trees import materialize_tree
from torchkeep.matching.plan import Assignment, LoadPlan
from torchkeep.tensors import TensorReader, same_bits

_Item = TypeVar("_Item", bound=tuple[Any, Assignment])
_Result = TypeVar("_Result")


class Act:
    """A plan that may be carried out.

    Args:
        reader: the file, open; it remembers the digests of what it reads.
        source: the file's state dict.
        target: the model.
        steps: the plan.
        device: where new tensors are made for a model on `meta`; the CPU if it is None.
    """

    def __init__(
        self,
        reader: TensorReader,
        source: Mapping[str, TensorEntry | Value],
        target: Target,
        steps: LoadPlan,
        device: torch.device | None = None,
    ) -> None:
        self.reader = reader
        self.source = source
        self.target = target
        self.steps = steps
        self.device = device
        self.tensors = [step for step in steps.assignments if not step.is_extra]
        # Of the keys of one tensor, one is written; the proof looks at all.
        self.unique = list({target.first_of(step.target): step for step in self.tensors}.items())

    # --- Before ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Find out before the act what would fail in it.

        Raises:
            FileProblem: a tensor of the file can't be read.
            LoadMismatch: the file has two values for what is one tensor in the model, or a place
                would be left without values.
            WrongArgument: what is to make fresh values can't.
        """
        for step in self.tensors:
            self.reader.check(self.source[step.source], step.source)
        written = {key: step.source for key, step in self.unique}
        for step in self.tensors:
            other = written[self.target.first_of(step.target)]
            if not self._is_same(step.source, other):
                raise LoadMismatch(
                    f"{step.target!r} is one tensor in the model, and the file has two different "
                    f"ones for it, {step.source!r} and {other!r}",
                    advice="Untie them in the model, or skip one of the keys.",
                )
        self._check_filled()
        self.target.check_reset(self.steps.reset)

    def _is_same(self, key: str, other: str) -> bool:
        one, two = self.source[key], self.source[other]
        return key == other or one == two or same_bits(self.reader.read(one), self.reader.read(two))

    def _check_filled(self) -> None:
        kept = [s.target for s in self.tensors if any(item.num_kept for item in s.adaptations)]
        left = [*kept, *self.steps.skipped, *self.steps.missing]
        left += [item.target for item in self.steps.mismatched]
        for key in left:
            live = self.target.tensors.get(key)
            if live is not None and live.is_meta:
                raise LoadMismatch(
                    f"{key!r} is on the meta device, and would be left without values",
                    advice="Make fresh ones with adapt={...: 'reset'}, or don't build it on meta.",
                )

    # --- The act ---------------------------------------------------------------------------------

    def copy(self) -> None:
        """Write into the model's tensors, after all of the file's were compared with digests."""
        self._in_groups(self._verify_group, self.unique)
        self._begin()
        self._in_groups(self._copy_group, self.unique)
        self._end()

    def assign(self) -> None:
        """Replace the model's tensors, on the device where they are or that was asked for."""
        values = dict(chain.from_iterable(self._in_groups(self._read_group, self.unique)))
        self._begin()
        self.target.replace(values)
        self._end()

    def _in_groups(
        self, work: Callable[[list[_Item]], _Result], items: Iterable[_Item]
    ) -> list[_Result]:
        """Return what is done to items, as pairs with their assignment, by several threads."""
        groups = grouped_by_size(items, self._nbytes_of)
        if self.reader.maps:  # nothing is read, so there is nothing to do at once
            return [work(group) for group in groups]
        return in_parallel(work, groups)

    def _nbytes_of(self, item: tuple[Any, Assignment]) -> int:
        nbytes: int = self.source[item[1].source].nbytes
        return nbytes

    def _verify_group(self, group: list[tuple[str, Assignment]]) -> None:
        for first, step in group:
            self.reader.verify(self.source[step.source], step.source)
            if step.adaptations:  # a cast may be refused
                self._adapted(step, self.target.tensors[first])

    def _begin(self) -> None:
        self.target = self.target.reset(self.steps.reset)

    def _copy_group(self, group: list[tuple[str, Assignment]]) -> None:
        for first, step in group:
            live = self.target.tensors[first]
            if not step.adaptations:
                self.reader.fill(live, self.source[step.source], step.source)
            else:
                with torch.no_grad():
                    live.copy_(self._adapted(step, live))

    def _read_group(self, group: list[tuple[str, Assignment]]) -> list[tuple[str, torch.Tensor]]:
        values = []
        for first, step in group:
            live = self.target.tensors[first]
            place = self.device or (torch.device("cpu") if live.is_meta else live.device)
            value = self.reader.own(self.source[step.source], step.source)
            made = adapted(value, live, step.adaptations, step.source)
            values.append((first, made.to(place)))
        return values

    def _adapted(self, step: Assignment, live: torch.Tensor) -> torch.Tensor:
        tensor = self.reader.read(self.source[step.source], step.source)
        return adapted(tensor, live, step.adaptations, step.source)

    def _end(self) -> None:
        for step in self.steps.assignments:
            if step.is_extra:
                value = materialize_tree(self.source[step.source], self.reader)
                self.target.set_extra_state(step.target, value)
        self.target.run_hooks()

    # --- The proof -------------------------------------------------------------------------------

    def prove(self, model: torch.nn.Module) -> dict[str, str]:
        """Compare a model, asked anew for its state, with the file; return its tensors' digests.

        Raises:
            ProofFailed: they differ.
        """
        live = live_tensors(model)
        pairs = [(live.get(step.target), step) for step in self.tensors]
        digests = dict(chain.from_iterable(self._in_groups(self._proven, pairs)))
        for step in self.tensors:
            if not digests[step.target]:
                raise ProofFailed(
                    f"{step.target!r} differs from the file's {step.source!r} after loading",
                    advice="The model changes or copies its own state; don't use it as loaded.",
                )
        return digests

    def _proven(
        self, group: Iterable[tuple[torch.Tensor | None, Assignment]]
    ) -> list[tuple[str, str]]:
        """Return the digest of each tensor that is as the file has it; an empty one for others."""
        return [(step.target, self._digest_if_proven(step, live)) for live, step in group]

    def _digest_if_proven(self, step: Assignment, live: torch.Tensor | None) -> str:
        if live is None:
            return ""
        if not step.adaptations:
            return self.reader.match(live, self.source[step.source], step.source)
        return digest_of(live) if same_bits(live, self._adapted(step, live)) else ""
