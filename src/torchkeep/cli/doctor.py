"""`torchkeep doctor`: what stands between a run and an exact resume, or data and a good model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torchkeep.cli.checkpoints import require_torch, write_findings, write_lines
from torchkeep.cli.progress import passing_line
from torchkeep.errors import CheckpointProblem, DamagedFile, NoCheckpoint
from torchkeep.showing import show, table
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.checkpointing.doctor.findings import Finding

DESCRIPTION = """\
Examine a run: what is different here and now from when its newest checkpoint was
made (versions, processor, devices, threads, commit), what the checkpoint could
not capture, which ones are damaged, what an interrupted write left, whether the
disk has room for another, and who writes to it. With --weights or --arch, examine
data instead, before a network is trained on it: labels, broken images, images
that are in training and validation, how they are prepared, whether the network
can learn a batch by heart, and which learning rates are of use. Without anything,
say what this machine and its installation are."""

EPILOG = """\
examples:
  torchkeep doctor runs/digits           would it go on, and exactly?
  torchkeep doctor --verify runs/digits  read every byte of all checkpoints
  torchkeep doctor photos/ --weights theirs.pth     what would go wrong?
  torchkeep doctor                       for a report of a bug

findings:
  blocked   the run can't go on here
  damaged   a checkpoint is of no use; a resume skips it
  inexact   it can go on, and may not be bit for bit what it would have been
  note      good to know

What a program sets by itself (determinism, precision) is compared when it goes
on. What a live program holds that no checkpoint can, such as a generator in a
data set, is told by torchkeep.checkpointing.inventory.

Of data, errors keep a network from learning, warnings make it worse for it.

The exit code is 0 if there are notes at the most, 5 if a checkpoint is damaged,
10 if the run can't go on or not exactly, 1 for errors and warnings about data, or
that of a problem."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "doctor",
        help="say what stands between a run and an exact resume",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", metavar="RUN|DATA", nargs="?", help="the folder of a run, or of images"
    )
    parser.add_argument("--weights", metavar="default|none|FILE", help="as in torchkeep train")
    parser.add_argument("--arch", metavar="NAME", help="as in torchkeep train")
    parser.add_argument("--size", metavar="PIXELS", type=int, help="as in torchkeep train")
    parser.add_argument("--channels", metavar="N", type=int, help="as in torchkeep train")
    parser.add_argument("--lr", metavar="RATE", type=float, default=1e-3, help="to be judged")
    parser.add_argument("--verify", action="store_true", help="read every byte of all checkpoints")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Examine a run, or this machine; return 0 if there is nothing but notes."""
    require_torch("doctor")
    if options.folder is None:
        _write_machine(as_json=options.json)
        return 0
    if options.weights or options.arch:
        return _examine_data(options)
    from torchkeep.checkpointing.doctor.examination import examine_run

    try:
        findings = examine_run(options.folder, verify=options.verify)
    except NoCheckpoint as error:
        error.advice += " If it holds images, name the weights or the network: --weights, --arch."
        raise
    if options.json:
        _write_json(path=options.folder, findings=[item.to_json() for item in findings])
    else:
        _write(options.folder, findings)
    return exit_code(findings)


def _examine_data(options: argparse.Namespace) -> int:
    """Examine what a training would start from; return 1 if something is wrong."""
    from torchkeep.training.checkup import check_up
    from torchkeep.training.preparing import prepare
    from torchkeep.training.settings import Settings

    settings = Settings(
        arch=options.arch,
        weights=options.weights or "default",
        size=options.size,
        channels=options.channels,
        lr=options.lr,
        augment="none",
    )
    prepared = prepare(options.folder, settings)
    with passing_line() as tell:
        findings = check_up(
            prepared, is_thorough=True, notify=lambda what: tell(f"looking at {what} ...")
        )
    is_wrong = any(item.severity != "note" for item in findings)
    if options.json:
        _write_json(path=options.folder, findings=[item.to_json() for item in findings])
    else:
        verdict = "look at this first" if is_wrong else "nothing is wrong that can be seen"
        write_lines([printable(f"{options.folder}: {verdict}")])
        write_findings(findings)
    return int(is_wrong)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code of what was found."""
    severities = {item.severity for item in findings}
    if severities & {"blocked", "inexact"}:
        return CheckpointProblem.exit_code
    return DamagedFile.exit_code if "damaged" in severities else 0


def _write(folder: str, findings: list[Finding]) -> None:
    severities = {item.severity for item in findings}
    verdict = next(text for severity, text in _VERDICTS if severity in severities)
    write_lines([printable(f"{folder}: {verdict}")])
    write_findings(findings)


_VERDICTS = (
    ("blocked", "it can't go on here as it is"),
    ("inexact", "it can go on, and may not be bit for bit what it would have been"),
    (
        "damaged",
        "it can go on bit for bit, but not all of its checkpoints are whole",
    ),
    ("note", "it can go on bit for bit, as far as its files tell"),
)


def _write_machine(*, as_json: bool) -> None:
    from torchkeep.checkpointing.doctor.examination import machine

    facts = machine()
    if as_json:
        _write_json(**facts)
        return
    sys.stdout.writelines(
        f"{line}\n" for line in table([(name, show(value)) for name, value in facts.items()])
    )


def _write_json(**fields: object) -> None:
    from torchkeep.identify.json_form import SCHEMA

    sys.stdout.write(json.dumps({"schema": SCHEMA, **fields}) + "\n")
