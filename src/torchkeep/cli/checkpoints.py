"""Checkpoints and findings on a screen, and what the verbs about runs have in common.

What a manifest says is a stranger's text, and is escaped like all others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torchkeep.cli.text import clip, wrapped
from torchkeep.errors import MissingExtra
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.checkpointing.doctor.findings import Finding
    from torchkeep.checkpointing.runs.checkpoints import Checkpoint
    from torchkeep.checkpointing.runs.retention import Best
    from torchkeep.training.diagnosis import Finding as TrainingFinding


def require_torch(verb: str) -> None:
    """Make sure that the part of torchkeep that knows runs can be imported.

    Raises:
        MissingExtra: PyTorch is not installed.
    """
    if find_spec("torch") is None:
        raise MissingExtra.for_modules(f"torchkeep {verb}", ["torch"], "torch")


def best_rule(text: str) -> Best:
    """Return the rule that a switch has, written as `val_loss:min`."""
    metric, _, direction = text.rpartition(":")
    if metric and direction == "min":
        return metric, "min"
    if metric and direction == "max":
        return metric, "max"
    raise argparse.ArgumentTypeError(f"{text!r} is no rule: write METRIC:min or METRIC:max")


def rule_text(rule: Best) -> str:
    """Return a rule as a person says it: `lowest val_loss`."""
    return f"{'lowest' if rule[1] == 'min' else 'highest'} {clip(rule[0], 40)}"


def date_text(date: str) -> str:
    """Return a manifest's date to the minute, in UTC; whatever else it has there, cut.

    >>> date_text("2026-11-05T08:30:12+00:00"), date_text("yesterday")
    ('2026-11-05 08:30', 'yesterday')
    """
    return clip(date.replace("T", " ")[:16], 16)


def where_text(checkpoint: Checkpoint) -> str:
    """Return how far a checkpoint is: `step 1,200, epoch 3, saved 2026-11-05 08:30 UTC`."""
    return f"{checkpoint.point}, saved {date_text(checkpoint.date)} UTC"


def write_lines(lines: Iterable[str], *, indent: int = 2) -> None:
    """Write lines as wide as the terminal is, what goes below moved to the right."""
    sys.stdout.writelines(f"{wrapped(line, sys.stdout, indent=indent)}\n" for line in lines)


def write_problems(checkpoints: Iterable[Checkpoint]) -> None:
    """Write what is wrong with each damaged one."""
    write_lines(
        (f"  {item.path.name}: {clip(item.problem, 300)}" for item in checkpoints), indent=4
    )


def write_findings(findings: Iterable[Finding | TrainingFinding]) -> None:
    """Write findings, how bad they are first."""
    width = max(map(len, ("blocked", "inexact"))) + 2
    for item in findings:
        place = getattr(item, "place", "")
        place = f"{clip(place, 100)}: " if place else ""
        text = f"  {item.severity:<{width}}{place}{clip(item.text, 400)}. {printable(item.advice)}"
        write_lines([text.rstrip()], indent=2 + width)
