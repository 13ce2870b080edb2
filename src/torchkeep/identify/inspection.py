"""What torchkeep can say about a file, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchkeep.contents import Contents, Value
from torchkeep.errors import FileProblem
from torchkeep.identify.architectures import ArchitectureMatch
from torchkeep.identify.integrity import Integrity
from torchkeep.identify.json_form import json_form
from torchkeep.identify.modules import ModuleNode
from torchkeep.identify.optimizers import Optimizer
from torchkeep.identify.safety import Safety
from torchkeep.identify.state_dicts import StateDict
from torchkeep.identify.tree import Budget, NamedTensor, named_tensors
from torchkeep.pickles.limits import Limits

FileRole = Literal[
    "state_dict", "module", "checkpoint", "optimizer", "program", "tensor", "object", "unknown"
]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a file is and what it holds. Of its tensors, only a few single numbers were read."""

    path: Path
    """The file, as it was asked for."""
    nbytes: int
    """Its size on disk."""
    container: str
    """The kind of file: `torch-zip`, `safetensors`, `dcp`, ...; docs/formats.md lists them."""
    role: FileRole
    """What it is used for."""
    summary: str
    """The same in one sentence."""
    state_dicts: tuple[StateDict, ...]
    """The state dicts in it, those of pickled modules included, in the file's order."""
    optimizers: tuple[Optimizer, ...]
    """The optimizers' states in it."""
    schedulers: tuple[str, ...]
    """Paths of learning-rate schedulers."""
    scalers: tuple[str, ...]
    """Paths of gradient scalers."""
    rng: tuple[str, ...]
    """Paths of random generators' states."""
    values: dict[str, Value]
    """The plain values by path: epoch, step, loss, class names, arguments. Tensors of no dimensions
    are there as their numbers, as far as these can be told."""
    modules: tuple[tuple[str, ModuleNode], ...]
    """The pickled modules in it, each with its path."""
    framework: str | None
    """The training framework that wrote it, if it can be told."""
    architecture: tuple[ArchitectureMatch, ...]
    """The networks of torchvision and timm that the main state dict fits, best first, ties with
    equal scores; empty if there is none."""
    safety: Safety
    """What loading it with an ordinary unpickler could do."""
    integrity: Integrity
    """Whether it is whole."""
    contents: Contents
    """All that was read: the tree of values itself."""
    members: tuple[Inspection, ...]
    """The files in an archive or a folder, each inspected by itself."""
    limits: Limits
    """The bounds under which it was read; they hold for what is asked of it later, too."""

    def __repr__(self) -> str:  # all of its fields would fill hundreds of pages
        return f"<Inspection of {str(self.path)!r}: {self.summary}>"

    def __str__(self) -> str:
        return self.summary

    @property
    def metadata(self) -> dict[str, str]:
        """What the container says about itself, such as a safetensors file's `__metadata__`."""
        return dict(self.contents.metadata)

    def tensors(self, *, arrays: bool = False) -> tuple[NamedTensor, ...]:
        """Return every tensor of the file, once for each place where it stands.

        Args:
            arrays: take NumPy's arrays in pickles for the tensors of their elements.

        Raises:
            LimitReached: there are more places than the limits allow.
        """
        budget = Budget.for_contents(self.contents, self.limits)
        try:
            return named_tensors(self.contents.root, budget, arrays=arrays)
        except FileProblem as problem:
            raise problem.in_file(self.path) from None

    def to_json(self, *, tensors: bool = False) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md) as plain dicts and lists.

        Args:
            tensors: include the table of all tensors.

        Raises:
            LimitReached: with `tensors`, as by `tensors()`.
        """
        return json_form(self, tensors=tensors)
