"""`torchkeep runs`: the training runs in a folder, and the checkpoints of each."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import (
    best_rule,
    date_text,
    require_torch,
    rule_text,
    write_lines,
    write_problems,
)
from torchkeep.cli.text import columns, elide
from torchkeep.errors import DamagedFile
from torchkeep.showing import table
from torchkeep.wording import counted, printable, size

if TYPE_CHECKING:
    from torchkeep.checkpointing.runs.checkpoints import Checkpoint
    from torchkeep.checkpointing.runs.overview import Run

DESCRIPTION = """\
List the runs of torchkeep.Checkpointer in a folder and below it, and the
checkpoints of each: how far, when, metrics, size, whether it is whole, which
one is the last, and which the best."""

EPILOG = """\
examples:
  torchkeep runs runs/                       all runs below it
  torchkeep runs runs/digits --best val_loss:min
  torchkeep runs --verify runs/digits        read every byte
  torchkeep runs --json runs/ | jq -r .path  for programs

epoch 2+40: two are finished, and 40 batches of the third.

health:
  ok        its files are there, and have the right sizes
  whole     every byte of it is as it was written (--verify)
  damaged   a resume skips it; the reason stands below

`last` is what a resume goes on with. `best` goes by --best, or else by what the
run itself keeps the best by. `inexact`: it was saved where a resume can't be
bit for bit.

The exit code is 0, 5 if a checkpoint is damaged, or that of a problem.
`torchkeep --help` lists the codes."""

_LONGEST_METRIC = 14


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "runs",
        help="list training runs and their checkpoints",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="a run, or a folder with runs below it")
    parser.add_argument(
        "--best", metavar="METRIC:min|max", type=best_rule, help="what the best one goes by"
    )
    parser.add_argument("--verify", action="store_true", help="read every byte of every checkpoint")
    parser.add_argument("--json", action="store_true", help="write JSON, one line per run")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """List the runs; return 0 if no checkpoint is damaged."""
    require_torch("runs")
    from torchkeep.checkpointing.runs.overview import find_runs, look_at_run

    is_damaged = False
    for number, path in enumerate(find_runs(options.folder)):
        found = look_at_run(path, best=options.best, verify=options.verify)
        is_damaged |= any(item.problem for item in found.checkpoints)
        if options.json:
            sys.stdout.write(json.dumps(_form(found), allow_nan=False) + "\n")
        else:
            sys.stdout.write("\n" if number else "")
            _write(found)
        sys.stdout.flush()  # reading the next one may take a while
    return DamagedFile.exit_code if is_damaged else 0


# --- For people --------------------------------------------------------------------------------


def _write(found: Run) -> None:
    damaged = [item for item in found.checkpoints if item.problem]
    parts = [counted(len(found.checkpoints), "checkpoint"), size(found.nbytes)]
    parts += [f"{len(damaged):,} damaged"] if damaged else []
    parts += [f"best by {rule_text(found.keep_best)}"] if found.keep_best else []
    parts += [f"{found.writer} writes to it"] if found.writer else []
    write_lines([printable(f"{found.path}: {', '.join(parts)}")])
    sys.stdout.writelines(f"{line}\n" for line in _table(found))
    write_problems(damaged)


def _table(found: Run) -> list[str]:
    """Return the table with as many metrics as the terminal has room for."""
    metrics = _metrics(found)
    width = columns(sys.stdout)
    lines: list[str] = []
    for number in range(len(metrics), -1, -1):
        for has_year in (True, False):
            lines = list(_lines(found, metrics[:number], has_year=has_year))
            if not width or max(map(len, lines)) <= width:
                return lines
    return lines


def _lines(found: Run, metrics: list[str], *, has_year: bool) -> Iterator[str]:
    names = [elide(name, _LONGEST_METRIC) for name in metrics]
    rows = [["checkpoint", "epoch", "saved (UTC)", *names, "size", "health"]]
    for item in found.checkpoints:
        told = _told(item, metrics, has_year=has_year)
        if item.problem:
            told = [""] * len(told)
        rows.append([item.path.name, *told, size(item.nbytes), _marked(found, item)])
    yield from table(rows, right={1, *range(3, len(metrics) + 4)})


def _told(item: Checkpoint, metrics: list[str], *, has_year: bool) -> list[str]:
    """Return the cells that a checkpoint's manifest fills."""
    epoch = f"{item.epoch:,}+{item.batch:,}" if item.batch else f"{item.epoch:,}"
    date = date_text(item.date)
    numbers = [_number(item.metrics.get(name)) for name in metrics]
    return [epoch, date if has_year else date[5:], *numbers]


def _metrics(found: Run) -> list[str]:
    """Return the metrics' names, those that matter first: what is left out comes last."""
    names = dict.fromkeys(name for item in found.checkpoints for name in item.metrics)
    first = [found.keep_best[0]] if found.keep_best and found.keep_best[0] in names else []
    return list(dict.fromkeys([*first, *(["loss"] if "loss" in names else []), *sorted(names)]))


def _number(value: object) -> str:
    """Return a metric in few digits; a manifest may have anything in its place."""
    return f"{value:.4g}" if isinstance(value, int | float) else "" if value is None else "?"


def _health(found: Run, item: Checkpoint) -> str:
    if item.problem:
        return "damaged"
    return "whole" if found.is_verified else "ok"


def _marked(found: Run, item: Checkpoint) -> str:
    """Return the health of a checkpoint, and what else it is."""
    marks = {
        "last": item is found.last,
        "best": item is found.best,
        "inexact": bool(item.inexact),
    }
    return ", ".join([_health(found, item), *(name for name, is_so in marks.items() if is_so)])


# --- For programs ------------------------------------------------------------------------------


def _form(found: Run) -> dict[str, Any]:
    """Return the documented JSON form (docs/cli.md)."""
    from torchkeep.identify.json_form import SCHEMA

    return {
        "schema": SCHEMA,
        "path": str(found.path),
        "nbytes": found.nbytes,
        "writer": found.writer,
        "keep_best": list(found.keep_best) if found.keep_best else None,
        "checkpoints": [_checkpoint_form(found, item) for item in found.checkpoints],
    }


def _checkpoint_form(found: Run, item: Checkpoint) -> dict[str, Any]:
    return {
        "path": str(item.path),
        "step": item.step,
        "epoch": item.epoch,
        "batch": item.batch,
        "date": item.date,
        "metrics": {name: _metric_form(value) for name, value in item.metrics.items()},
        "nbytes": item.nbytes,
        "health": _health(found, item),
        "problem": item.problem,
        "inexact": list(item.inexact),
        "is_last": item is found.last,
        "is_best": item is found.best,
    }


def _metric_form(value: object) -> object:
    """Return a metric in JSON's terms, as `inspect` has its values."""
    from torchkeep.identify.json_form import jsonable

    is_plain = isinstance(value, float) and math.isfinite(value)
    return value if is_plain else jsonable(value)
