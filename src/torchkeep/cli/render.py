"""An inspection for a person, in a terminal or in a pipe; drawn by rich.

A terminal gets its width and some colour. A pipe gets neither: its lines are as long as they need
to be, so that `grep` finds what it looks for. Text goes to rich as `Text`, never as markup, since
a tensor may well be called `[red]`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from torchkeep.cli.folding import fold
from torchkeep.cli.metadata import metadata_rows
from torchkeep.cli.text import clip, elide, shape, show, what_was_compared
from torchkeep.contents import name_within
from torchkeep.identify.architectures import best_of
from torchkeep.identify.module_lines import tree_lines
from torchkeep.wording import counted, printable, size

if TYPE_CHECKING:
    from torchkeep.contents import Finding
    from torchkeep.identify import (
        Inspection,
        NamedTensor,
        Optimizer,
        Safety,
        StateDict,
    )

MAX_ROWS = 60
"""Rows of one table; what is left out is counted, and a switch shows it."""
MAX_TABLES = 3
"""State dicts whose tensors are shown unasked, those that look the same aside."""
PIPE_WIDTH = 1_000_000
"""Columns of a pipe: more than any line needs, so nothing is ever wrapped or cut."""

Row = tuple[str | Text, ...]

_COLOURS = {
    "data-only": "green",
    "needs-trust": "yellow",
    "ambiguous": "red",
    "dangerous": "bold red",
    "damaged": "bold red",
    "note": "dim",
    "harmless": "dim",
}
_VERDICTS = {
    "data-only": "it holds data and no code",
    "needs-trust": "unpickling it calls code by name; do that only if you trust its source",
    "ambiguous": "other programs may see something else in it: do not load it",
    "dangerous": "unpickling it would run what no model needs: do not load it",
}


def write_inspection(
    inspection: Inspection, *, tensors: bool = False, tree: bool = False, title: str = ""
) -> None:
    """Write an inspection to stdout.

    Args:
        inspection: what was found.
        tensors: list every tensor instead of folded names.
        tree: show the modules of a pickled model.
        title: a line before it, to tell several files apart.
    """
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),  # never stdout itself: rich has its own way with a closed pipe
        force_terminal=is_terminal,
        width=None if is_terminal else PIPE_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )
    sections = _sections(inspection, tensors=tensors, tree=tree)
    if title:
        _write(console, Text(f"==> {printable(title)} <==", style="dim"))
    _write(console, Text(clip(inspection.summary, 1000), style="bold"))
    for heading, body in sections:
        sys.stdout.write("\n")
        if heading:
            _write(console, Text(heading, style="bold cyan"))
        _write(console, body, indent="  ")


def _write(console: Console, body: RenderableType, indent: str = "") -> None:
    with console.capture() as capture:
        console.print(body, width=console.width - len(indent))
    # Table cells are padded to their column's width; a line needs no spaces at its end.
    lines = (line.rstrip() for line in capture.get().splitlines())
    sys.stdout.writelines(f"{indent}{line}\n" for line in lines)


def _sections(
    inspection: Inspection, *, tensors: bool, tree: bool
) -> Iterator[tuple[str, RenderableType]]:
    yield "", _overview(inspection)
    if inspection.members:
        yield "Files", _members(inspection)
    if inspection.architecture:
        yield from _architecture(inspection)
    yield from _tensors(inspection, unfolded=tensors)
    if inspection.optimizers:
        yield "Optimizers", _optimizers(inspection.optimizers)
    metadata = metadata_rows(inspection)
    if metadata:
        yield "Metadata", _table((), metadata, more="--json shows all")
    if inspection.values:
        # The deeper a value stands, the less it is what a person looks for.
        values = sorted(inspection.values.items(), key=lambda item: item[0].count("."))
        rows = [(clip(name), show(value)) for name, value in values]
        yield "Values", _table((), rows, more="--json shows all")
    if inspection.modules:
        yield "Modules", _modules(inspection, tree=tree)
    yield from _names(inspection.safety)
    findings = _other_findings(inspection)
    if findings:
        yield "Findings", _findings(findings)


def _overview(inspection: Inspection) -> RenderableType:
    safety = inspection.safety
    grid = _grid()
    grid.add_row("file", f"{printable(str(inspection.path))}, {size(inspection.nbytes)}")
    grid.add_row("format", inspection.container)
    if inspection.framework:
        grid.add_row("framework", clip(inspection.framework))
    if inspection.architecture:
        grid.add_row("architecture", _fits(inspection))
    for name in ("schedulers", "scalers", "rng"):
        held = getattr(inspection, name)
        if held:
            grid.add_row(name, ", ".join(map(clip, held)))
    verdict = _severity(safety.verdict)
    grid.add_row("safety", verdict.append(f": {_reason(safety)}", style="default"))
    if safety.weights_only is not None:
        grid.add_row("torch.load", _weights_only(safety) + _otherwise(inspection))
    if inspection.integrity.state == "damaged":
        grid.add_row("integrity", Text("damaged: see the findings", style=_COLOURS["damaged"]))
    elif inspection.integrity.verified:
        state = "" if inspection.integrity.ok else "incomplete: "
        grid.add_row("integrity", state + what_was_compared(inspection.integrity))
    return grid


def _reason(safety: Safety) -> str:
    """Return what a verdict means for this file, in a few words."""
    if safety.verdict == "needs-trust":
        for finding in safety.findings:
            if finding.rule in _CODE_RULES:
                return clip(finding.text)
    return _VERDICTS[safety.verdict]


_CODE_RULES = frozenset({"program", "source-code"})


def _members(inspection: Inspection) -> RenderableType:
    rows = [
        (
            clip(name_within(inspection.path, member.path)),
            member.container,
            size(member.nbytes),
            clip(member.summary, 300),
        )
        for member in inspection.members
    ]
    is_short = all(len(name) <= _SHORT_NAME for name, *_ in rows)
    return _table((), rows, more="--json shows all", firm=3 if is_short else 0)


_SHORT_NAME = 40
"""A file's name so long is not folded on a narrow screen; what it holds is."""


def _architecture(inspection: Inspection) -> Iterator[tuple[str, RenderableType]]:
    """Yield how the state dict differs from the network that it fits; nothing if it does not."""
    best = inspection.architecture[0]
    grid = _grid()
    for what in ("missing", "unexpected", "mismatched"):
        names = getattr(best, what)
        if names:
            folded = ", ".join(str(pattern) for pattern, _ in fold(dict.fromkeys(names, ""))[:6])
            grid.add_row(what, f"{len(names):,}", clip(folded, 300))
    if grid.row_count:
        yield f"Differences from {best.name}", grid


def _fits(inspection: Inspection) -> str:
    """Return the best match and those that can't be told from it."""
    best = inspection.architecture[0]
    ties = [match.name for match in best_of(inspection.architecture)]
    names = ", ".join(ties[:_MOST_TIES])
    more = (
        f" and {len(ties) - _MOST_TIES} more of the same shapes" if len(ties) > _MOST_TIES else ""
    )
    facts = [f"{100 * best.score:.4g} % alike"]
    if best.is_part:
        under = f" under {best.prefix}" if best.prefix else ""
        names, facts = f"contains {names}", [f"{100 * best.score:.4g} % of the network{under}"]
    if best.named_by:
        facts.append(f"named by {best.named_by}")
    if best.num_classes is not None:
        facts.append(counted(best.num_classes, "class"))
    if best.input_channels is not None:
        facts.append(counted(best.input_channels, "input channel"))
    return f"{names}{more} ({', '.join(facts)})"


_MOST_TIES = 3


def _weights_only(safety: Safety) -> str:
    if safety.weights_only:
        return "weights_only=True takes it"
    names = f" because of {counted(len(safety.blocked), 'name')}" if safety.blocked else ""
    older = [name for name, takes in safety.weights_only_by_release.items() if takes]
    but = f"; that of PyTorch {' and '.join(older)} takes it" if older else ""
    return f"weights_only=True refuses it{names}{but}"


def _otherwise(inspection: Inspection) -> str:
    """Return how a file can be loaded that `torch.load` refuses, if that is to be recommended."""
    safety = inspection.safety
    is_fine = safety.verdict in ("data-only", "needs-trust") and inspection.contents.problem is None
    return (
        "" if safety.weights_only or not is_fine else "; torchkeep.load takes it, and runs nothing"
    )


def _tensors(inspection: Inspection, *, unfolded: bool) -> Iterator[tuple[str, RenderableType]]:
    if inspection.state_dicts:
        yield "State dicts", _state_dicts(inspection.state_dicts)
    if unfolded:
        yield "Tensors", _all_tensors(inspection)
    elif inspection.state_dicts:
        yield from _folded_tensors(inspection.state_dicts)
    else:
        yield from _other_tensors(inspection)


def _state_dicts(state_dicts: Iterable[StateDict]) -> RenderableType:
    rows = [
        (
            _name(item),
            item.role,
            f"{item.num_tensors:,}",
            f"{item.num_parameters:,}",
            size(item.nbytes),
            f"wrapped: {clip(item.prefix)}" if item.prefix else "",
        )
        for item in state_dicts
    ]
    headings = ("name", "role", ">tensors", ">parameters", ">size", "")
    return _table(headings, rows, more="--json shows all")


def _name(part: StateDict | Optimizer) -> str:
    return clip(part.name) or "(the whole file)"


def _folded_tensors(state_dicts: Iterable[StateDict]) -> Iterator[tuple[str, RenderableType]]:
    seen: dict[frozenset[tuple[str, tuple[str, str]]], str] = {}
    for item in state_dicts:
        name = _name(item)
        title = f"Tensors of {name}" if item.name else "Tensors"
        looks = {key: (entry.dtype, shape(entry.shape)) for key, entry in item.entries.items()}
        bare = frozenset((key.removeprefix(item.prefix), look) for key, look in looks.items())
        first = seen.setdefault(bare, name)
        if first != name:
            yield title, Text(f"the same names, shapes and types as {first}")
        elif len(seen) <= MAX_TABLES:
            yield title, _folded(looks)
        else:
            yield title, Text("as --tensors lists them")


def _other_tensors(inspection: Inspection) -> Iterator[tuple[str, RenderableType]]:
    """Yield the tensors of a file that has no state dict."""
    looks = {
        item.path: (item.entry.dtype, shape(item.entry.shape)) for item in inspection.tensors()
    }
    if looks:
        yield "Tensors", _folded(looks)


def _folded(looks: dict[str, tuple[str, str]]) -> RenderableType:
    rows = [
        (elide(str(pattern)), f"{len(pattern)} x" if len(pattern) > 1 else "", *look)
        for pattern, look in fold(looks)
    ]
    return _table((), rows, more="--tensors lists all")


def _all_tensors(inspection: Inspection) -> RenderableType:
    rows = [
        (
            printable(tensor.path),
            tensor.entry.dtype,
            shape(tensor.entry.shape),
            _alias(tensor),
        )
        for tensor in inspection.tensors()
    ]
    return _table((), rows, limit=len(rows))


def _alias(tensor: NamedTensor) -> str:
    if tensor.same_as is not None:
        return f"= {printable(tensor.same_as)}"
    if tensor.alias_of is not None:
        return f"shares memory with {printable(tensor.alias_of)}"
    return ""


def _optimizers(optimizers: Iterable[Optimizer]) -> RenderableType:
    parts: list[RenderableType] = []
    for item in optimizers:
        head = f"{_name(item)}: {item.family or 'of unknown family'}, "
        parts.append(Text(f"{head}{counted(item.num_states, 'state')}, {size(item.nbytes)}"))
        rows = [
            (f"group {number}", _options(group)) for number, group in enumerate(item.param_groups)
        ]
        table = _table((), rows, limit=4, more="--json shows all")
        parts.append(Padding.indent(table, 2))
    return Group(*parts)


def _options(group: dict[str, Any]) -> str:
    """Return a param group's options on a line; those that are off say nothing."""
    options = [
        f"{clip(name)} {show(value)}"
        for name, value in group.items()
        if name != "num_params" and value is not None and value is not False
    ]
    # fastai's groups are lists of options beside the parameters, which are not in the file.
    size = [counted(group["num_params"], "parameter")] if "num_params" in group else []
    return ", ".join([*size, *options])


def _modules(inspection: Inspection, *, tree: bool) -> RenderableType:
    lines: list[str] = []
    for path, module in inspection.modules:
        name = f"{clip(path)}: " if path else ""
        if tree:
            first, *rest = tree_lines(module)
            lines += [name + first, *rest]
        else:
            below = " (--tree shows what is in it)" if module.children else ""
            lines.append(name + clip(module.class_path) + below)
    return Group(*map(_indented, lines))


def _indented(line: str) -> RenderableType:
    """Return a line that goes on under its own start where it is wrapped."""
    text = line.lstrip()
    return Padding.indent(Text(text), len(line) - len(text))


def _names(safety: Safety) -> Iterator[tuple[str, RenderableType]]:
    """Yield the names that keep a file from being loaded without trust, if there are any."""
    severities = {finding.place: finding.severity for finding in safety.findings}
    heading, names = "Names that torch.load(weights_only=True) refuses", safety.blocked
    if safety.weights_only is None:  # it is loaded by something else
        heading = "Names that unpickling it would call"
        names = tuple(name for name in safety.blocked if name in severities)
    rows = [(_severity(severities.get(name, "harmless")), clip(name)) for name in names]
    if rows:
        yield heading, _table((), rows, more="--json shows all")


def _severity(name: str) -> Text:
    return Text(name, style=_COLOURS[name])


def _other_findings(inspection: Inspection) -> list[Finding]:
    """Return the findings that are not about a name, which has its own place."""
    named = set(inspection.safety.blocked)
    findings = dict.fromkeys((*inspection.safety.findings, *inspection.contents.findings))
    return [finding for finding in findings if finding.place not in named]


def _findings(findings: Iterable[Finding]) -> RenderableType:
    grid = _grid()
    for finding in findings:
        place = f" ({clip(finding.place)})" if finding.place else ""
        grid.add_row(_severity(finding.severity), f"{clip(finding.text, 1000)}{place}")
    return grid


def _table(
    columns: tuple[str, ...],
    rows: Sequence[Row],
    *,
    limit: int = MAX_ROWS,
    more: str = "",
    firm: int = 0,
) -> RenderableType:
    """Lay out rows.

    Args:
        columns: their headings, with a `>` before that of a number; empty for no headings.
        rows: their cells.
        limit: how many rows are shown.
        more: how to see the others.
        firm: how many columns, from the first on, keep each cell on a line.
    """
    table = _grid()
    table.show_header = bool(columns)
    for column in columns:
        number = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if number else "left", no_wrap=number)
    for row in rows[:limit]:
        table.add_row(*row)
    for made in table.columns:
        made.overflow = "fold"  # the alternative is to cut
    for made in table.columns[:firm]:
        made.no_wrap = True
    if len(rows) <= limit:
        return table
    return Group(table, Text(f"... and {counted(len(rows) - limit, 'more row')} ({more})"))


def _grid() -> Table:
    return Table(
        box=None, show_header=False, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0)
    )
