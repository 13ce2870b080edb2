"""The steps of a load plan, on an open file and a live model: check, write, prove."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torchkeep.contents import TensorEntry, Value
from torchkeep.errors import LoadMismatch, ProofFailed
from torchkeep.files import in_parallel
from torchkeep.loading.adapting import adapted
from torchkeep.loading.report import digest_of
from torchkeep.loading.targets import Target, live_tensors
from torchkeep.loading.trees import materialize_tree
from torchkeep.matching.plan import Assignment, LoadPlan
from torchkeep.tensors import TensorReader, same_bits

_WORTH_A_THREAD = 4 << 20
"""Bytes of a new tensor from which on another thread helps."""


class Act:
    """A plan that may be carried out.

    Args:
        reader: the file, open; it remembers the digests of what it reads.
        source: the file's state dict.
        target: the model.
        steps: the plan.
        device: where new tensors are made. If it is None, where the model's are, and on the CPU for
            those on `meta`.
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
            self._check_has_values(step)
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

    def _check_has_values(self, step: Assignment) -> None:
        entry = self.source[step.source]
        if isinstance(entry, TensorEntry) and entry.storage.device == "meta":
            raise LoadMismatch(
                f"the file's {step.source!r} was saved from the meta device, and has no values",
                advice="Save the model after it was given values, or skip the tensor.",
            )

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
        # In one thread: with two, it is memory that they wait for.
        for first, step in self.unique:
            self.reader.verify(self.source[step.source], step.source)
            if step.adaptations:  # a cast may be refused
                self._adapted(step, self.target.tensors[first])
        self._begin()
        for first, step in self.unique:
            self._fill(self.target.tensors[first], step)
        self._end()

    def assign(self) -> None:
        """Replace the model's tensors, on the device where they are or that was asked for."""
        values = self._new_tensors()
        self._begin()
        self.target.replace(values)
        self._end()

    def _new_tensors(self) -> dict[str, torch.Tensor]:
        """Return the new tensors by the first key of what they replace.

        The system takes as long to find memory for them as to read them, so the large ones are made
        by several threads; with small ones these would do little but hand Python's lock over.
        """

        def make(item: tuple[str, Assignment]) -> tuple[str, torch.Tensor]:
            first, step = item
            return first, self._new(self.target.tensors[first], step)

        large = [item for item in self.unique if self._is_large(item[1])]
        small = [item for item in self.unique if not self._is_large(item[1])]
        return dict([*map(make, small), *in_parallel(make, large)])

    def _is_large(self, step: Assignment) -> bool:
        entry = self.source[step.source]
        is_read = isinstance(entry, TensorEntry) and not self.reader.maps
        return is_read and entry.nbytes >= _WORTH_A_THREAD

    def _begin(self) -> None:
        self.target = self.target.reset(self.steps.reset)

    def _fill(self, live: torch.Tensor, step: Assignment) -> None:
        if not step.adaptations:
            self.reader.fill(live, self.source[step.source], step.source)
        else:
            with torch.no_grad():
                live.copy_(self._adapted(step, live))

    def _new(self, live: torch.Tensor, step: Assignment) -> torch.Tensor:
        place = self.device or (torch.device("cpu") if live.is_meta else live.device)
        value = self.reader.own(self.source[step.source], step.source)
        return adapted(value, live, step.adaptations, step.source).to(place)

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
        digests = {
            step.target: self._digest_if_proven(step, live.get(step.target))
            for step in self.tensors
        }
        for step in self.tensors:
            if not digests[step.target]:
                raise ProofFailed(
                    f"{step.target!r} differs from the file's {step.source!r} after loading",
                    advice="The model changes or copies its own state; don't use it as loaded.",
                )
        return digests

    def _digest_if_proven(self, step: Assignment, live: torch.Tensor | None) -> str:
        if live is None:
            return ""
        if not step.adaptations:
            return self.reader.match(live, self.source[step.source], step.source)
        return digest_of(live) if same_bits(live, self._adapted(step, live)) else ""
