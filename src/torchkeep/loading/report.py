"""What a load did, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torchkeep.wording import counted


@dataclass(frozen=True, slots=True)
class Loaded:
    """One tensor of the model that was filled."""

    target: str
    """The model's key."""
    source: str
    """The file's key."""
    adaptation: str | None
    """What was done on the way, or None if it was copied as it is."""
    shape: tuple[int, ...]
    """The model's shape; empty for a scalar."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    Every key of both sides is in `loaded`, `extra_state`, `skipped` or `unused`.
    """

    path: Path
    """The file."""
    state_dict: str
    """The state dict that was chosen: its path in the file, empty for the root."""
    why: str
    """Why that one, in one sentence."""
    stripped: tuple[str, ...]
    """Wrapper components that the file's keys have and the model's lack."""
    loaded: tuple[Loaded, ...]
    """The tensors that were filled, in the model's order."""
    extra_state: tuple[str, ...]
    """The model's keys whose module got its extra state back. The proof does not cover it."""
    skipped: tuple[str, ...]
    """The model's keys that were asked to be left alone."""
    unused: tuple[str, ...]
    """The file's keys that were asked to be left alone, or whose place was."""
    coverage: float
    """Elements of the model that were loaded, as a share of all; tied ones are counted once."""
    proven: bool
    """Whether each loaded tensor was compared with the file, bytes or digest, after the act."""

    def __str__(self) -> str:
        loaded = counted(len(self.loaded), "tensor")
        text = f"{self.path}: {loaded} loaded, {self.coverage:.1%} of the model"
        text += ", proven equal to the file" if self.proven else ""
        adapted = sum(item.adaptation is not None for item in self.loaded)
        for count, what in (
            (len(self.extra_state), "with extra state (not compared)"),
            (adapted, "adapted"),
            (len(self.skipped), "skipped"),
            (len(self.unused), "unused in the file"),
        ):
            text += f"; {count} {what}" if count else ""
        if self.stripped:
            text += f"; dropped from the file's names: {', '.join(self.stripped)}"
        return f"{text}. {self.why}"
