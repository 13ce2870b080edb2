"""Switches that take a rule, `LEFT=RIGHT`, and the one that verbs share: `--rename OLD=NEW`."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def add_rename(parser: argparse.ArgumentParser) -> None:
    """Give a verb the switch that renames the keys of a file."""
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=rule_as("OLD=NEW"),
        action="append",
        default=[],
        help="rename the file's keys, * standing for any text (repeatable; the first that fits "
        "counts)",
    )


def rule_as(form: str) -> Callable[[str], tuple[str, str]]:
    """Return what splits the text of a switch into the two sides of a rule.

    Args:
        form: how such a rule is written, for the error about one that isn't.
    """

    def rule(text: str) -> tuple[str, str]:
        left, equals, right = text.partition("=")
        if not equals or not left:
            raise argparse.ArgumentTypeError(f"{text!r} is no rule: write {form}")
        return left, right

    return rule
