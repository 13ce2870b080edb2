"""What may vary in a file, and the inputs on which it is proven for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from torchkeep.errors import WrongArgument
from torchkeep.exporting.examples import NUM_IMAGES, Examples, cycled
from torchkeep.exporting.targets.target import Dims

BATCH_SIZES = (1, 2, 7)
"""What is proven where the batch may vary: the one that is often fixed by mistake, the one that was
exported with, and one that nothing was made for."""

EXPORT_BATCH = 2
"""The rows that a file is written with where the batch may vary: torch.export makes
a constant of a size that is one."""

DYNAMICS = ("batch", "sizes", "none")
Dynamic = str | Mapping[str, Mapping[int, str]]
"""One of `DYNAMICS`, or by input which dimensions may vary and what they are called."""


def let_vary(examples: Examples, dynamic: Dynamic) -> Examples:
    """Return the same inputs, and which of their dimensions may vary.

    Args:
        examples: the inputs.
        dynamic: `batch` for the first dimension, `sizes` for an image's height and width as well,
            `none`, or what is written out.

    Raises:
        WrongArgument: it is none of these, or names what is not there.
    """
    how = _of_each(examples, dynamic) if isinstance(dynamic, str) else _named(examples, dynamic)
    return replace(examples, dynamic=how)


def _of_each(examples: Examples, dynamic: str) -> Dims:
    if dynamic not in DYNAMICS:
        raise WrongArgument(
            f"nothing is dynamic in the way of {dynamic!r}",
            advice=f"Choose one of {', '.join(DYNAMICS)}.",
        )
    found: list[Mapping[int, str]] = []
    for arg in examples.args:
        dims = {0: "batch"} if dynamic != "none" and arg.dim() else {}
        if dynamic == "sizes" and arg.dim() == 4:
            dims |= {2: "height", 3: "width"}
        found.append(dims)
    if dynamic == "sizes" and not any(2 in dims for dims in found):
        raise WrongArgument("no input is an image, [n, channels, height, width]")
    return tuple(found)


def _named(examples: Examples, dynamic: Mapping[str, Mapping[int, str]]) -> Dims:
    for name, dims in dynamic.items():
        if name not in examples.names:
            raise WrongArgument(
                f"there is no input {name!r}", advice=f"There are {', '.join(examples.names)}."
            )
        arg = examples.args[examples.names.index(name)]
        for at in dims:
            if not 0 <= at < arg.dim():
                raise WrongArgument(f"{name} has dimensions 0 to {arg.dim() - 1}, and no {at}")
    return tuple(dict(dynamic.get(name, {})) for name in examples.names)


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs that the original and the file are run on."""

    name: str
    """What they are, such as `batch 2`."""
    args: tuple[torch.Tensor, ...]
    """The inputs."""


def cases_of(examples: Examples) -> list[Case]:
    """Return what a file is to be proven with, by what may vary in it."""
    if examples.has_dynamic_batch:
        begins = [sum(BATCH_SIZES[:at]) for at in range(len(BATCH_SIZES))]
        found = [
            Case(f"batch {size}", examples.rows(size, begin))
            for size, begin in zip(BATCH_SIZES, begins, strict=True)
        ]
    else:
        size = examples.batch_size
        found = [
            Case(f"batch {size}, rows from {begin + 1}", examples.rows(size, begin))
            for begin in range(0, min(examples.num_rows, 3 * size), size)
        ]
    args = examples.rows(size := examples.call_size(EXPORT_BATCH))
    if sizes := _other_sizes(args, examples.dynamic):
        told = ", ".join(f"{name} {value}" for name, value in sizes.items())
        pairs = zip(args, examples.dynamic, strict=True)
        resized = tuple(_resized(arg, dims, sizes) for arg, dims in pairs)
        found.append(Case(f"batch {size}, {told}", resized))
    return found


def every_row(examples: Examples) -> list[Case]:
    """Return cases with all of the inputs, as far as there are more than `cases_of` takes."""
    count = min(NUM_IMAGES, examples.num_rows)
    if not examples.has_dynamic_batch or count <= max(BATCH_SIZES):
        return []
    return [Case(f"batch {count}", examples.rows(count))]


def _other_sizes(args: Sequence[torch.Tensor], dynamic: Dims) -> dict[str, int]:
    """Return another size for each dimension that may vary, besides the first; by its name.

    An image's become unlike, since height and width may be mixed up, and stay multiples of 32.
    """
    found: dict[str, int] = {}
    for arg, dims in zip(args, dynamic, strict=True):
        for at, name in sorted(dims.items()):
            if at and name not in found:
                more = 32 * (len(found) + 1) if _is_image(arg) and at > 1 else 3
                found[name] = arg.shape[at] + more
    return found


def _resized(arg: torch.Tensor, dims: Mapping[int, str], sizes: Mapping[str, int]) -> torch.Tensor:
    """Return an input of other sizes: images scaled, everything else repeated from its begin."""
    wanted = {at: sizes[name] for at, name in dims.items() if at}
    if wanted and _is_image(arg) and wanted.keys() <= {2, 3}:
        height, width = (wanted.get(at, arg.shape[at]) for at in (2, 3))
        return functional.interpolate(arg, (height, width), mode="bilinear", align_corners=False)
    for at, size in wanted.items():
        arg = cycled(arg, at, size)
    return arg


def _is_image(arg: torch.Tensor) -> bool:
    return arg.dim() == 4 and (arg.is_floating_point() or arg.dtype == torch.uint8)
