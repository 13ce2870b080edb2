"""What an export target is: how it is written, and how its runtime runs what was written.

Each target is one file beside this one: a frozen dataclass of its options with `write`, and a
function `open_file`. The latter runs in a process of its own which has nothing of the original, and
imports the target's runtime and nothing else. So importing a target's file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torchkeep.errors import ExportRefused, WrongArgument
from torchkeep.wording import printable

if TYPE_CHECKING:
    import torch

    from torchkeep.training.quantizing import Ranges

Arrays = Sequence[Any]
"""NumPy arrays, in the order of a program's inputs or outputs."""

Dims = tuple[Mapping[int, str], ...]
"""By input, dimensions and their names."""


VALIDATION_BATCH = 32
"""How many images a proof runs at once where the batch may vary: each file has to take so many."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a target writes: a network in evaluation mode on the CPU, and how it is called."""

    model: torch.nn.Module
    """The network."""
    args: tuple[torch.Tensor, ...]
    """Inputs in their order, two rows of each where the batch may vary."""
    names: tuple[str, ...]
    """The names of the inputs."""
    outputs: tuple[str, ...]
    """The names of the outputs."""
    dynamic: Dims
    """By input, the dimensions that may vary, and their names; all empty if none may."""
    metadata: Mapping[str, str]
    """What the file is to say of itself, by name."""
    calibration: Sequence[tuple[torch.Tensor, ...]] = ()
    """Real inputs in batches, from which a quantized target learns its ranges."""
    ranges: Ranges = field(default_factory=dict)
    """The ranges that training has learnt."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a written file, as its runtime sees it."""

    name: str
    """Its name."""
    dtype: str
    """Its element type, as NumPy calls it."""
    shape: tuple[int | str, ...]
    """Its dimensions; those that may vary by their names."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A written file in its runtime."""

    run: Callable[[Arrays], Arrays]
    """Inputs to outputs. What NumPy has no type for comes as float32."""
    inputs: tuple[Port, ...] = ()
    """What it takes, if the runtime tells."""
    metadata: Mapping[str, str] | None = None
    """What the file says of itself; None if files of this kind can't say anything."""
    layers: Callable[[Arrays], Mapping[str, Any]] | None = None
    """Inputs to the outputs of the layers, by the names of the original's modules."""
    tensors: Callable[[], Mapping[str, Any]] | None = None
    """Its parameters and buffers by the original's names, where its layers can't be looked into."""


class Target(Protocol):
    """A kind of deployment file, with options."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    """What it is called on the command line; `targets/<name>.py` is its file."""
    suffixes: ClassVar[tuple[str, ...]]
    """What its files end in, the usual one first."""
    modules: ClassVar[tuple[str, ...]]
    """What must be installed to write and to prove one."""
    extra: ClassVar[str]
    """The extra of torchkeep that installs these."""
    beside: ClassVar[tuple[str, ...]]
    """The names of what may lie beside a file and belongs to it; the file's own is `{name}`, and
    without its suffix `{stem}`."""
    precisions: ClassVar[tuple[str, ...]]
    """What it can compute in."""

    @property
    def precision(self) -> str:
        """What is computed in: `float32`, or something smaller."""

    def write(self, program: Program, path: Path) -> None:
        """Write the file, and what belongs to it beside it.

        Raises:
            ExportRefused: the network can't be written so.
        """


def check_precision(target: Target) -> None:
    """Make sure that a target knows its precision.

    Raises:
        WrongArgument: it does not.
    """
    if target.precision not in target.precisions:
        raise WrongArgument(
            f"the target {target.name} has no precision {target.precision!r}",
            advice=f"Choose one of {', '.join(target.precisions)}.",
        )


def check_ranges(ranges: Ranges, layers: Container[str], where: str) -> None:
    """Make sure that each range that training has learnt is of a layer that is there.

    Raises:
        ExportRefused: one is not.
    """
    missing = [name for name in ranges if name not in layers]
    if missing:
        names = printable(", ".join(missing[:5]))
        raise ExportRefused(
            f"a range was learnt for {names}, and the {where} has no such layer",
            advice="Is it the network that was trained?",
        )
