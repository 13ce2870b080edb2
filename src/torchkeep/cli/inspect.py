"""`torchkeep inspect`: what a model file holds."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from torchkeep.cli.failures import report
from torchkeep.errors import DamagedFile, TorchkeepError

if TYPE_CHECKING:
    from torchkeep.identify import Inspection

DESCRIPTION = """\
Say what a model file holds: which kind of file it is, its state dicts,
optimizer, values and modules, and whether it is safe to load. The file is read
as data: no code in it runs, no class in it is imported, no PyTorch is needed."""

EPILOG = """\
examples:
  torchkeep inspect model.pth                 one sentence, then the details
  torchkeep inspect --tensors model.pth       every tensor, none folded
  torchkeep inspect --tree model.pth          the modules of a pickled model
  torchkeep inspect --json a.pth b.safetensors | jq .summary

Repeated layers are folded: `layers.{0...11}.weight` stands for twelve tensors.
--json writes one object per file, each on a line of its own.

The exit code is 0 if every file could be read, whatever its safety verdict,
else that of the first file with a problem. `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "inspect",
        help="say what model files hold, without running anything in them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="a model file of any kind")
    parser.add_argument("--json", action="store_true", help="write JSON, one line per file")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--tree", action="store_true", help="show the modules of a pickled model")
    parser.add_argument(
        "--limit",
        metavar="NAME=VALUE",
        type=_limit,
        action="append",
        default=[],
        dest="limits",
        help="raise a limit for a file that you trust, as in steps=100_000_000 (repeatable)",
    )
    parser.set_defaults(run=run)


def _limit(text: str) -> tuple[str, int]:
    """Return the name and the amount of one `--limit`."""
    from dataclasses import fields

    from torchkeep.pickles.limits import Limits

    name, _, amount = text.partition("=")
    names = [field.name for field in fields(Limits)]
    if name not in names:
        raise argparse.ArgumentTypeError(f"{name!r} is no limit: use one of {', '.join(names)}")
    try:
        value = int(amount)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{name} needs a whole number above 0, not {amount!r}")
    return name, value


def run(options: argparse.Namespace) -> int:
    """Inspect each file, and return the exit code of the first problem, or 0."""
    from torchkeep.identify import inspect
    from torchkeep.pickles.limits import Limits

    limits = Limits(**dict(options.limits))
    codes = []
    for path in options.files:
        try:
            inspection = inspect(path, limits=limits)
            _write(inspection, options)
        except TorchkeepError as error:
            codes.append(report(error))
            continue
        codes.append(0 if inspection.integrity.ok else DamagedFile.exit_code)
    return next(filter(None, codes), 0)


def _write(inspection: Inspection, options: argparse.Namespace) -> None:
    if options.json:
        document = inspection.to_json(tensors=options.tensors)
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
        return
    from torchkeep.cli.render import write_inspection

    title = str(inspection.path) if len(options.files) > 1 else ""
    write_inspection(inspection, tensors=options.tensors, tree=options.tree, title=title)
