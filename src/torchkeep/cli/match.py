"""`torchkeep match`: what loading a file into a network would do, without doing it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.numbers import add_sizes, sizes_of
from torchkeep.cli.rules import add_rename, rule_as
from torchkeep.cli.text import wrapped
from torchkeep.errors import LoadMismatch, WrongArgument
from torchkeep.matching.adaptations import ADAPTATIONS, NAMES
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.matching.plan import LoadPlan

DESCRIPTION = """\
Show what torchkeep.load_into would do with a file and a network: which tensors
are copied as they are, which have to be adapted, what is missing on either
side, and the call that loads the rest. Nothing is loaded and nothing is
written; of the file's tensors only names and shapes are read."""

EPILOG = f"""\
examples:
  torchkeep match theirs.pth                  is it the network it looks like?
  torchkeep match theirs.pth --arch torchvision/resnet18 --num-classes 5
  torchkeep match theirs.pth --arch my_package.models:Net
  torchkeep match old.pth --arch timm/resnet18 --rename 'encoder.*=*' \\
      --adapt 'fc.*=skip' --allow cast

A * in --rename stands for any text, on both sides; patterns of --adapt are
those of file names. Adaptations:
{chr(10).join(f"  {name:17} {what}" for name, what in NAMES.items())}

The exit code is 0 if everything would be loaded or was asked to be left alone,
9 if not. `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "match",
        help="show what loading a file into a network would do",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="PATH", help="a model file of any kind, or a folder of one")
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help="the network: torchvision/NAME, timm/NAME, or module:callable, which is imported; "
        "without it, the one that the file's names and shapes tell",
    )
    add_sizes(parser)
    parser.add_argument(
        "--select", metavar="NAME", default="auto", help="which state dict: auto, ema, or its name"
    )
    add_rename(parser)
    parser.add_argument(
        "--adapt",
        metavar="PATTERN=NAME[,NAME...]",
        type=rule_as("PATTERN=NAME"),
        action="append",
        default=[],
        help="what may be done to the keys that a pattern matches",
    )
    parser.add_argument(
        "--allow",
        metavar="NAME",
        action="append",
        default=[],
        choices=list(ADAPTATIONS),
        help=f"use this wherever it is usual and helps: {', '.join(ADAPTATIONS)}",
    )
    parser.add_argument(
        "--min-coverage",
        metavar="SHARE",
        type=float,
        default=1.0,
        help="the share of the parameters that is enough, from 0 to 1",
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    add_limits(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the plan; return 0 if it may be carried out."""
    from torchkeep.loading import plan
    from torchkeep.networks import build

    name, arguments = _network(options)
    steps = plan(
        build(name, device="meta", **arguments),
        options.file,
        select=options.select,
        rename=dict(options.rename),
        adapt={pattern: names.split(",") for pattern, names in options.adapt},
        allow=options.allow,
        min_coverage=options.min_coverage,
        limits=limits_of(options),
    )
    _write_json(options, name, steps) if options.json else _write(options, name, steps)
    return 0 if steps.is_allowed else LoadMismatch.exit_code


def _network(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return the network that was asked for, or else the file's own, and its arguments."""
    given = sizes_of(options)
    if options.arch:
        return options.arch, given
    from torchkeep.identify import inspect

    found = inspect(options.file, limits=limits_of(options)).architecture
    if not found:
        raise WrongArgument(
            f"{options.file}: its names and shapes fit no network of torchvision or timm",
            advice="Name one with --arch.",
        )
    best = found[0]
    told = {"num_classes": best.num_classes}
    if best.name.startswith("timm/"):
        told["input_channels"] = best.input_channels
    return best.name, told | {key: value for key, value in given.items() if value is not None}


def _write(options: argparse.Namespace, name: str, steps: LoadPlan) -> None:
    verdict = "fits" if steps.is_complete else "fits in part, as allowed"
    if not steps.is_allowed:
        verdict = "does not fit as it is"
    lines = [f"{options.file} {verdict}: {name}", *str(steps).split("\n")]
    for line in lines:
        indent = len(line) - len(line.lstrip())
        sys.stdout.write(wrapped(printable(line), sys.stdout, indent=indent + 2) + "\n")


def _write_json(options: argparse.Namespace, name: str, steps: LoadPlan) -> None:
    from torchkeep.identify.json_form import SCHEMA

    head = {"schema": SCHEMA, "path": options.file, "network": name, "fits": steps.is_allowed}
    sys.stdout.write(json.dumps(head | asdict(steps)) + "\n")
