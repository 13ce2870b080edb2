"""A network as a graph of torch.export, which several targets start from."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.errors import ExportRefused
from torchkeep.exporting.targets.exporters import first_line, quietly, reason
from torchkeep.exporting.targets.target import Program
from torchkeep.showing import elide
from torchkeep.wording import shortened

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def graph_of(program: Program, largest: Sequence[Mapping[int, int]] = ()) -> ExportedProgram:
    """Return a network as a graph.

    Dimensions that may vary are asked for as such, so that one which the network fixes is an error
    and no silent constant.

    Args:
        program: the network, and what may vary.
        largest: by input, how large the dimensions that may vary can be, for what has to know.

    Raises:
        ExportRefused: it has what torch.export can't follow, or fixes a dimension.
    """
    import torch

    dim = torch.export.Dim
    shapes = tuple(
        {at: dim.DYNAMIC(max=most[at]) if at in most else dim.DYNAMIC for at in dims}
        for dims, most in zip(program.dynamic, largest or repeat({}))  # noqa: B905 (has no end)
    )
    how: dict[str, Any] = {"dynamic_shapes": shapes if any(shapes) else None}
    with quietly():
        try:
            return torch.export.export(program.model, program.args, strict=False, **how)
        except Exception as error:  # the network's own code runs, and raises anything
            first = error
        # What runs the network's Python sees less than what reads its bytecode, and the other way.
        try:
            return torch.export.export(program.model, program.args, strict=True, **how)
        except Exception:
            raise _refusal(program, first) from first


def _refusal(program: Program, error: Exception) -> ExportRefused:
    text, place = str(error), _own_line(error)
    at = f", at {place}" if place else ""
    is_of_values = "data-dependent" in text
    is_fixed = "Constraints violated" in text or "specialized" in text
    if any(program.dynamic) and is_fixed and not is_of_values:
        names = sorted({name for dims in program.dynamic for name in dims.values()})
        return ExportRefused(
            f"the network takes one size alone where it was to take any ({', '.join(names)})"
            f"{at}: {first_line(text)}",
            advice="Export it for that size: dynamic='none' (--dynamic none), or 'batch' if other "
            "image sizes were asked for.",
        )
    what = "torch.export can't follow the network"
    if is_of_values:
        what = "the network decides by values, which a graph can't"
    return ExportRefused(
        f"{what}{at} ({reason(error)})",
        advice="Branches that depend on values are written with torch.cond or torch.where; "
        "TorchScript by script (--to torchscript --by script) takes some that a graph can't.",
    )


def _own_line(error: BaseException) -> str:
    """Return the last line of code on the way to an error that is not PyTorch's; empty if none."""
    import torch

    # With the separator, since torchvision begins with torch as well.
    folders = (Path(torch.__file__).parent, Path(__file__).parents[2])
    libraries = (*(f"{folder}{os.sep}" for folder in folders), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    if not own or not own[-1].filename:
        return ""
    code = f": {shortened(own[-1].line, 80)}" if own[-1].line else ""
    return f"{elide(own[-1].filename, 400)}, line {own[-1].lineno}{code}"
