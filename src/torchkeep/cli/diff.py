"""`torchkeep diff`: what two model files have in common and what not."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torchkeep.cli.failures import EXIT_DIFFERENT
from torchkeep.cli.folding import fold
from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.progress import reading_progress
from torchkeep.cli.text import columns, elide, shape, show, wrapped
from torchkeep.wording import counted, printable

if TYPE_CHECKING:
    from torchkeep.comparing import (
        Change,
        Difference,
        Form,
        PartDifference,
        TensorDifference,
        ValueDifference,
    )

DESCRIPTION = """\
Compare two model files: which tensors are the same bit for bit, which changed
and how far, which only one has; the optimizers and the plain values too. Any two
files that `torchkeep inspect` reads can be compared: a checkpoint with a bare
state dict, a .pth with a .safetensors. Nothing in them runs."""

EPILOG = """\
examples:
  torchkeep diff before.pth after.pth      what did this epoch change?
  torchkeep diff best.ckpt model.safetensors   was this exported from that?
  torchkeep diff --select ema a.pth b.pth  only the averaged weights
  torchkeep diff --select model --select-b ema last.pth last.pth
  torchkeep diff --json a.pth b.pth | jq .summary

Names are compared without what DataParallel, DDP, FSDP and torch.compile put
into them. What one file has and the other lacks as a whole, such as an
optimizer, is named and does not count; nor does the date of a save.

relative  the norm of the difference, divided by the norm in A
largest   the largest absolute difference of two elements
elements  how many elements changed; -0.0 equals 0.0, and a NaN a NaN

These numbers need PyTorch; all else works without it. Two files with
torchkeep's digests in them are compared by these; --verify reads every byte.

The exit code is 0 if all that was compared is the same bit for bit, 1 if it is
not, else that of a problem. `torchkeep --help` lists the codes."""

_MOST_ROWS = 10
"""Rows of one kind that are shown without --all."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "diff",
        help="compare two model files, down to the bits",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="a model file of any kind, or a folder of one")
    parser.add_argument("b", metavar="B", help="the file to compare it with")
    parser.add_argument(
        "--select",
        metavar="NAME",
        default="auto",
        help="compare only the state dict of this name; `ema` is the moving average",
    )
    parser.add_argument(
        "--select-b", metavar="NAME", help="its name in B, where that is another one"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every byte, digests or not, and check both"
    )
    parser.add_argument("--all", action="store_true", help="show every difference, none folded")
    parser.add_argument(
        "--json", action="store_true", help="write JSON; with --all, equal tensors as well"
    )
    add_limits(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare two files, and return 0 if they are equal, 1 if they differ."""
    from torchkeep.comparing import diff

    found = diff(
        options.a,
        options.b,
        select=options.select,
        select_b=options.select_b,
        verify=options.verify,
        limits=limits_of(options),
        progress=reading_progress(),
    )
    if options.json:
        document = found.to_json(equal=options.all)
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    else:
        for line in _lines(found, show_all=options.all):
            sys.stdout.write(line + "\n")
    return 0 if found.equal else EXIT_DIFFERENT


def _lines(found: Difference, *, show_all: bool) -> Iterator[str]:
    """Yield the whole answer: one sentence, then each part, then what was left out."""
    yield _wrapped(str(found))
    for part in found.parts:
        yield ""
        yield from _part_lines(part, show_all=show_all)
    left_out = [*(f"{item} (only in A)" for item in found.left_out_a)]
    left_out += [f"{item} (only in B)" for item in found.left_out_b]
    notes = [f"Not compared: {', '.join(left_out)}."] if left_out else []
    notes += [_how(found)]
    if not found.has_numbers and any(part.counts["changed"] for part in found.parts):
        notes.append(
            "How far changed tensors are apart needs PyTorch: pip install 'torchkeep[torch]'"
        )
    yield from ["", *(_wrapped(printable(note)) for note in notes if note)]


def _part_lines(part: PartDifference, *, show_all: bool) -> Iterator[str]:
    names = [repr(name) if name else "the root" for name in (part.name_a, part.name_b)]
    head: str = part.kind
    if part.kind != "values":
        head += f" {names[0]}" if names[0] == names[1] else f" {names[0]} in A, {names[1]} in B"
    yield _wrapped(printable(f"{head}: {_counts(part)}"))
    notes = (
        ("A", part.name_a and part.why_a, part.stripped_a),
        ("B", part.name_b and part.why_b, part.stripped_b),
    )
    for side, why, stripped in notes:  # why the root was taken needs no words
        text = " ".join(filter(None, (why, _stripping(stripped))))
        if text:
            yield _wrapped(printable(f"  {side}: {text}"), indent=5)
    for kind, title in _TITLES:
        rows = [item for item in part.tensors if item.kind == kind]
        if rows:
            yield from _cut(_TABLES[kind](title, rows, show_all), show_all=show_all)
    if part.values:
        values = [("values that differ", ""), *map(_value_row, part.values)]
        yield from _cut(_aligned(values), show_all=show_all)


def _counts(part: PartDifference) -> str:
    """Return how much of a part is the same."""
    counts = part.counts
    parts = [
        (counts.total() - counts["equal"], counts.total(), "tensor"),
        (len(part.values), part.num_values, "value"),
    ]
    if part.equal:
        told = [counted(total, noun) for _, total, noun in parts if total]
        return f"equal ({', '.join(told) or 'empty'})"
    told = [f"{n:,} of {counted(total, noun)}" for n, total, noun in parts if n]
    return f"{', '.join(told)} differ"


def _stripping(stripped: tuple[str, ...]) -> str:
    return f"Its names are compared without {', '.join(stripped)}." if stripped else ""


def _how(found: Difference) -> str:
    """Return what was compared how, where there is more than one answer."""
    hows = [item.how for part in found.parts for item in part.tensors]
    digests, read = hows.count("digests"), hows.count("bytes")
    if not digests:
        return ""
    others = f", {read:,} by every byte" if read else ""
    return f"{counted(digests, 'tensor')} compared by the files' digests{others}."


_TITLES = (
    ("changed", "changed"),
    ("shape", "another shape"),
    ("dtype", "another dtype"),
    ("bits", "other bits, equal values"),
    ("only_a", "only in A"),
    ("only_b", "only in B"),
)

Row = tuple[str, ...]
"""The cells of a line: a name, then columns that stand to the right."""


def _changed(title: str, items: Sequence[TensorDifference], show_all: bool) -> list[str]:
    """Return the table of what changed, the largest relative change first."""
    rows = []
    for name, group in _folded(items, show_all):
        changes = [item.change for item in group if item.change is not None]
        worst = max((change.relative for change in changes), default=math.inf)
        told = [(name, *_numbers(group, changes)), *_not_finite(changes)]
        rows.append((worst, told))
    rows.sort(key=lambda row: -row[0])
    head = (title, "relative", "largest", "elements")
    return _aligned([head, *(row for _, told in rows for row in told)])


def _numbers(group: Sequence[TensorDifference], changes: Sequence[Change]) -> Row:
    if len(changes) < len(group):
        return "", "", "bytes differ"
    total = sum(change.num_elements for change in changes)
    changed = sum(change.num_changed for change in changes)
    relative, largest = (
        f"{max(getattr(change, name) for change in changes):.3g}"
        for name in ("relative", "largest")
    )
    return relative, largest, f"{changed:,} of {total:,}"


def _not_finite(changes: Sequence[Change]) -> list[Row]:
    """Return a row that says how many NaNs and infinities there are, if there are any."""
    told = []
    for word, name in (("NaN", "num_nan"), ("inf", "num_inf")):
        a, b = (sum(getattr(change, name)[side] for change in changes) for side in (0, 1))
        told += [f"{word} {a:,} -> {b:,}"] if a or b else []
    return [("  " + ", ".join(told), "", "", "")] if told else []


def _forms(title: str, items: Sequence[TensorDifference], show_all: bool) -> list[str]:
    """Return the table of what has another form, or is missing."""
    rows = [(name, _form_text(group)) for name, group in _folded(items, show_all)]
    return _aligned([(title, ""), *rows])


def _form_text(group: Sequence[TensorDifference]) -> str:
    a, b = group[0].a, group[0].b
    if a is None or b is None:
        form = a or b
        return f"{printable(form.dtype)} {shape(form.shape)}" if form else ""
    if a.shape != b.shape:
        dtypes = "" if a.dtype == b.dtype else f"{printable(a.dtype)} -> {printable(b.dtype)} "
        return f"{dtypes}{shape(a.shape)} -> {shape(b.shape)}"
    if a.dtype == b.dtype:
        return f"{printable(a.dtype)} {shape(a.shape)}"
    text = f"{printable(a.dtype)} -> {printable(b.dtype)}"
    changes = [item.change for item in group if item.change is not None]
    if len(changes) < len(group):
        return text
    relative = max(change.relative for change in changes)
    is_same = not any(change.num_changed for change in changes)
    return f"{text}, {'equal values' if is_same else f'relative {relative:.3g}'}"


_TABLES: dict[str, Callable[[str, Sequence[TensorDifference], bool], list[str]]] = {
    "changed": _changed,
    **dict.fromkeys(("shape", "dtype", "bits", "only_a", "only_b"), _forms),
}


def _folded(
    items: Sequence[TensorDifference], show_all: bool
) -> list[tuple[str, list[TensorDifference]]]:
    """Return patterns of names with what they stand for; each name by itself with --all."""
    if show_all:
        return [(item.name, [item]) for item in items]
    by_name = {item.name: item for item in items}
    shared: dict[str, tuple[Form | None, Form | None]] = {
        name: (item.a, item.b) for name, item in by_name.items()
    }
    return [
        (str(pattern), [by_name[name] for name in pattern.expand()]) for pattern, _ in fold(shared)
    ]


def _value_row(item: ValueDifference) -> Row:
    if item.kind == "changed":
        return item.name, f"{show(item.a, depth=1)} -> {show(item.b, depth=1)}"
    value = item.a if item.kind == "only_a" else item.b
    return item.name, f"{show(value, depth=1)} (only in {item.kind[-1].upper()})"


def _aligned(rows: Sequence[Row]) -> list[str]:
    """Return a table as lines that fit the terminal: the head, and the rows below it.

    A column with a title has numbers, which stand to the right.
    """
    width = columns(sys.stdout)
    most = width - 2 * _INDENT - _GAP - _SHORTEST_NAME if width else _LONGEST_CELL
    cells = [tuple(elide(printable(cell), most) for cell in row[1:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    room = width - 2 * _INDENT - sum(widths) - _GAP * len(widths) if width else _LONGEST_CELL
    names = [elide(printable(row[0]), max(room, _SHORTEST_NAME)) for row in rows]
    names = [names[0], *(" " * _INDENT + name for name in names[1:])]
    first = max(map(len, names))
    lines = []
    for name, row in zip(names, cells, strict=True):
        line = name.ljust(first)
        for size, title, cell in zip(widths, cells[0], row, strict=True):
            line += " " * _GAP + (cell.rjust(size) if title else cell.ljust(size))
        lines.append(" " * _INDENT + line.rstrip())
    return lines


_INDENT = 2
_GAP = 2
_SHORTEST_NAME = 24
_LONGEST_CELL = 160


def _cut(lines: list[str], *, show_all: bool) -> list[str]:
    """Return the head of a table and its first rows, and how many are left."""
    more = len(lines) - 1 - _MOST_ROWS
    if show_all or more <= 0:
        return lines
    return [*lines[: _MOST_ROWS + 1], f"    ... and {more:,} more (--all shows all)"]


def _wrapped(text: str, *, indent: int = 2) -> str:
    return wrapped(text, sys.stdout, indent=indent)
