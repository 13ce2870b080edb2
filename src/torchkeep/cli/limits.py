"""The switch `--limit NAME=VALUE`, which the verbs share that read files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchkeep.pickles.limits import Limits


_NAMES = (
    "pickle_nbytes copied_nbytes steps depth places key_nodes key_collisions records archive_depth "
    "expansion header_nbytes".split()
)
"""The fields of `torchkeep.Limits`, which a verb that reads nothing need not import."""


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Give a verb the switch that raises limits."""
    parser.add_argument(
        "--limit",
        metavar="NAME=VALUE",
        type=_limit,
        action="append",
        default=[],
        dest="limits",
        help="raise a limit for a file that you trust, as in steps=100_000_000 (repeatable); "
        f"the names are {', '.join(_NAMES)}",
    )


def limits_of(options: argparse.Namespace) -> Limits:
    """Return the limits that a verb was told: the last of each name, else the default."""
    from torchkeep.pickles.limits import Limits

    return Limits(**dict(options.limits))


def _limit(text: str) -> tuple[str, int]:
    """Return the name and the amount of one `--limit`."""
    name, _, amount = text.partition("=")
    if name not in _NAMES:
        raise argparse.ArgumentTypeError(f"{name!r} is no limit: use one of {', '.join(_NAMES)}")
    try:
        value = int(amount)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{name} needs a whole number above 0, not {amount!r}")
    return name, value
