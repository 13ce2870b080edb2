"""What a load did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from torchkeep.errors import ProofFailed, WrongArgument
from torchkeep.files import digest
from torchkeep.loading.replay import Replay
from torchkeep.loading.targets import live_tensors
from torchkeep.matching.explain import naming
from torchkeep.matching.plan import Assignment, LoadPlan
from torchkeep.tensors import MAPPED, bytes_of, plain_on_cpu
from torchkeep.wording import counted, share


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did, and that it was proven: each tensor was compared with the file's."""

    path: Path
    """The file."""
    plan: LoadPlan
    """What was carried out. Every key of both sides is in it."""
    digests: dict[str, str] = field(default_factory=dict)
    """`files.digest` of each loaded tensor as the model has it, by the model's key; `mapped` for
    what is the file itself."""
    replayed: Replay | None = None
    """How the model did on the samples that the file carries; None if it was not run on any."""
    not_replayed: str = ""
    """Why it was not run on them; empty if it was, if there are none, or if nobody wanted it."""

    @property
    def state_dict(self) -> str:
        """The state dict that was chosen: its path in the file, empty for the root."""
        return self.plan.state_dict

    @property
    def why(self) -> str:
        """Why that one, in one sentence."""
        return self.plan.why

    @property
    def loaded(self) -> tuple[Assignment, ...]:
        """The tensors that were filled, in the model's order."""
        return tuple(step for step in self.plan.assignments if not step.is_extra)

    @property
    def extra_state(self) -> tuple[str, ...]:
        """The model's keys whose module got its extra state back; that can't be compared."""
        return tuple(step.target for step in self.plan.assignments if step.is_extra)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The model's keys that were left alone."""
        return self.plan.skipped

    @property
    def unused(self) -> tuple[str, ...]:
        """The file's keys that were left alone."""
        return self.plan.unused

    @property
    def coverage(self) -> float:
        """Parameters that got their values from the file, as a share of all."""
        return self.plan.coverage

    def check(self, model: torch.nn.Module) -> None:
        """Make sure that a model still has what was loaded into it.

        Some models initialise themselves once more, when they are first used or put elsewhere.

        Args:
            model: the model, on any device, of the dtypes that it had, and wrapped as it was.

        Raises:
            ProofFailed: tensors differ from what was loaded; the first ones are named.
            WrongArgument: the file was mapped.
        """
        if MAPPED in self.digests.values():
            raise WrongArgument(
                "what was mapped was not read, and can't be compared later",
                advice="Load without mmap=True.",
            )
        live = live_tensors(model)
        changed = [key for key, text in self.digests.items() if digest_of(live.get(key)) != text]
        if changed:
            named = ", ".join(map(repr, changed[:5])) + (", ..." if len(changed) > 5 else "")
            raise ProofFailed(
                f"what was loaded from {self.path} has changed in {len(changed)} of "
                f"{counted(len(self.digests), 'tensor')}: {named}",
                advice="Something has initialised or trained the model since.",
            )

    def __str__(self) -> str:
        text = f"{self.path}: {counted(len(self.loaded), 'tensor')} loaded, "
        text += f"{share(self.coverage)} of the model's parameters, proven equal to the file"
        for items, what in (
            (self.extra_state, "with extra state (not compared)"),
            ([step for step in self.loaded if step.adaptations], "adapted"),
            (self.plan.skipped, "skipped"),
            (self.plan.reset, "given fresh values"),
            (
                [*self.plan.missing, *self.plan.mismatched],
                "left as they were, nothing fits",
            ),
            ([*self.plan.unused, *self.plan.unexpected], "unused in the file"),
        ):
            text += f"; {len(items)} {what}" if items else ""
        if self.replayed:
            text += f"; does what it did on {counted(self.replayed.num_samples, 'sample')}"
        if self.not_replayed:
            text += f"; the file's samples were not run, since {self.not_replayed}"
        return "; ".join([text, *naming(self.plan)]) + f". {self.why}"


def digest_of(tensor: torch.Tensor | None) -> str:
    """Return the digest of a tensor's elements in C order; an empty text if there is none."""
    return "" if tensor is None else digest(bytes_of(plain_on_cpu(tensor)))
