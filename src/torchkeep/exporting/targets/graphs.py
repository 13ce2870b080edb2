"""A network as a graph of torch.export, which several targets start from."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.errors import ExportRefused
from torchkeep.exporting.targets.target import Program
from torchkeep.wording import printable, shortened

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
    what = (
        "the network decides by values, which a graph can't"
        if is_of_values
        else ("torch.export can't follow the network")
    )
    return ExportRefused(
        f"{what}{at} ({type(error).__name__}: {first_line(text)})",
        advice="Branches that depend on values are written with torch.cond or torch.where; "
        "TorchScript by script (--to torchscript --by script) takes some that a graph can't.",
    )


def _own_line(error: BaseException) -> str:
    """Return the last line of code on the way to an error that is not PyTorch's; empty if none."""
    import torch

    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    if not own:
        return ""
    code = f": {shortened(own[-1].line, 80)}" if own[-1].line else ""
    return printable(f"{own[-1].filename}, line {own[-1].lineno}{code}")


def first_line(text: str) -> str:
    """Return the first line of a message that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[0] if lines else "no message", 300)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what exporters say of themselves off the screen; what matters raises.

    torch.jit tells that it is deprecated at every call: the documentation says so once. Where
    torch.export can't follow a branch, it prints its graph to stderr, before it raises.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_whole(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write what PyTorch saves, by way of memory: its own writer ends the process on a full disk.

    Raises:
        OSError: the system refuses.
    """
    memory = io.BytesIO()
    save(memory)
    with path.open("wb") as file:
        file.write(memory.getbuffer())
