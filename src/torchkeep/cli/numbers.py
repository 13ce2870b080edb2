"""Switches that take whole numbers from a least one on, and those that verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is at least so much.

    >>> whole(1)("64")
    64
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
        return number

    return read


def add_sizes(parser: argparse._ActionsContainer) -> None:
    """Give a verb the switches for what a network by its name is made for."""
    parser.add_argument("--num-classes", metavar="N", type=whole(1), help="its number of classes")
    parser.add_argument(
        "--input-channels", metavar="N", type=whole(1), help="its input channels (timm)"
    )


def sizes_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a verb was told of these, as `torchkeep.networks.build` takes it."""
    return {"num_classes": options.num_classes, "input_channels": options.input_channels}
