"""`torchkeep prune`: delete old checkpoints of a run, never the one that is needed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torchkeep.cli.checkpoints import (
    best_rule,
    require_torch,
    rule_text,
    where_text,
    write_lines,
)
from torchkeep.cli.numbers import whole
from torchkeep.cli.text import clip
from torchkeep.errors import WrongArgument
from torchkeep.wording import counted, printable, size

if TYPE_CHECKING:
    from torchkeep.checkpointing.runs.checkpoints import Checkpoint
    from torchkeep.checkpointing.runs.pruning import Pruning

DESCRIPTION = """\
Delete old checkpoints of a run that nobody writes to. What stays is read first,
every byte of it; a damaged one counts for nothing, and something else stays for
it. The last whole one always stays."""

EPILOG = """\
examples:
  torchkeep prune runs/digits --keep-last 2 --dry-run   what would go?
  torchkeep prune runs/digits --keep-last 1 --keep-best val_loss:min
  torchkeep prune runs/digits --damaged                 only the damaged ones

The best one stays too if the run keeps one: its checkpoints say by what. A
damaged one stays as well, as a part of it may be worth rescuing, unless
--damaged is given. Beside the newest --keep-last the newest one stays from
which a resume is exact.

The exit code is 0, or that of a problem. `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "prune",
        help="delete old checkpoints of a run",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--keep-last", metavar="N", type=whole(1), help="how many of the newest ones stay, from 1"
    )
    parser.add_argument(
        "--keep-best",
        metavar="METRIC:min|max",
        type=best_rule,
        help="what the best one is kept by (default: as the run itself does)",
    )
    parser.add_argument("--damaged", action="store_true", help="delete the damaged ones as well")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Delete what is to go, and return 0.

    Raises:
        WrongArgument: nothing says what is to go.
    """
    if options.keep_last is None and not options.damaged:
        raise WrongArgument(
            "nothing says what is to go", advice="Give --keep-last N, or --damaged."
        )
    require_torch("prune")
    from torchkeep.checkpointing.runs.pruning import prune

    report = prune(
        options.folder,
        keep_last=options.keep_last,
        keep_best=options.keep_best,
        damaged=options.damaged,
        dry_run=options.dry_run,
    )
    _write(report)
    return 0


def _write(report: Pruning) -> None:
    from torchkeep.checkpointing.runs.retention import best_of  # with PyTorch

    goes, stays = ("deleted", "kept") if report.is_done else ("would go", "would stay")
    num = counted(len(report.deleted), "checkpoint")
    head = f"{report.run}: {num} {goes}, {size(report.nbytes)} free; {len(report.kept):,} {stays}"
    if report.keep_best is not None and best_of(report.kept, report.keep_best) is None:
        head += f"; none of them has the metric {report.keep_best[0]} of a whole epoch"
    elif report.keep_best is not None:
        head += f", the one with the {rule_text(report.keep_best)} among them"
    write_lines([printable(head)])
    width = max(map(len, (goes, stays))) + 2
    for word, items in ((goes, report.deleted), (stays, report.kept), ("left", report.damaged)):
        write_lines((f"  {word:<{width}}{_told(item)}" for item in items), indent=2 + width)


def _told(item: Checkpoint) -> str:
    why = f"damaged: {clip(item.problem, 300)}" if item.problem else where_text(item)
    return f"{item.path.name}  {why}"
