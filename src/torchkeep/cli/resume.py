"""`torchkeep resume`: start the program of a run again, which goes on after its last checkpoint."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import (
    require_torch,
    where_text,
    write_findings,
    write_lines,
    write_problems,
)
from torchkeep.cli.failures import EXIT_USAGE, warn
from torchkeep.cli.processes import LAUNCH
from torchkeep.errors import CheckpointProblem
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.checkpointing.doctor.examination import Start
    from torchkeep.checkpointing.runs.checkpoints import Newest

DESCRIPTION = """\
Start the program of a run again, in the way in which it was started: it goes on
after the newest checkpoint that is whole. What that is, and what is different
now, is said first; then the command, which is run after a yes at the terminal."""

EPILOG = """\
examples:
  torchkeep resume runs/digits         look, then say yes or no
  torchkeep resume --yes runs/digits   for a program: do not ask

The command is what the checkpoint's manifest says. If the run is not your own,
read it before you say yes: it may be anything.

The exit code is that of the program; 0 after a no; 2 if there is no terminal to
ask at, and no --yes; or that of a problem. `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "resume",
        help="start a run's program again, which goes on where it was",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="the folder of a run")
    parser.add_argument("--yes", action="store_true", help="run the command without asking")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Say what a resume would do; become the program if that is wanted, else return.

    Raises:
        CheckpointProblem: there is nothing to go on with, or no program to go on.
    """
    require_torch("resume")
    from torchkeep.checkpointing.doctor.examination import compare, start_of
    from torchkeep.checkpointing.layout import read_manifest
    from torchkeep.checkpointing.runs.checkpoints import newest_whole
    from torchkeep.checkpointing.runs.lock import writer_of
    from torchkeep.checkpointing.runs.overview import check_run

    folder = check_run(options.folder)
    newest = newest_whole(folder)
    _write(folder, newest)
    write_findings(compare(newest.checkpoint))
    if writer := writer_of(folder):
        raise CheckpointProblem(
            f"{printable(str(folder))}: {writer} writes to this run", advice="Stop it first."
        )
    manifest = read_manifest(newest.checkpoint.path)
    start = _checked(folder, start_of(manifest) or start_of(_launched(manifest)))
    write_lines(["It was started by this command, says the checkpoint:"])
    _write_command(start)
    if not options.yes and not sys.stdin.isatty():
        warn("it was not started again: there is no terminal to ask at, and --yes is not given")
        return EXIT_USAGE
    if not options.yes and not _says_yes():
        return 0
    return _become(start)


def _write(folder: Path, newest: Newest) -> None:
    name = newest.checkpoint.path.name
    write_lines([printable(f"{folder}: goes on from {name}"), f"  {where_text(newest.checkpoint)}"])
    if newest.skipped:
        write_lines(["Newer ones, or of unknown age, are damaged and will be skipped:"])
        write_problems(newest.skipped)


def _launched(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a run of `torchkeep train --nproc` with its command in its place."""
    metadata = manifest.get("metadata")
    return {"command": metadata.get(LAUNCH) if isinstance(metadata, dict) else None}


def _checked(folder: Path, start: Start | None) -> Start:
    """Return how the program was started, if starting it again would go on with this folder."""
    from torchkeep.checkpointing.doctor.environment import is_folder

    shown = printable(str(folder))
    if start is None:
        raise CheckpointProblem(
            f"{shown}: the checkpoint does not say how the run was started; a notebook, a prompt "
            "or a launcher such as torchrun can't be started again from here",
            advice="Start the program in the way in which it was; it goes on by itself.",
        )
    if not is_folder(start.cwd):
        raise CheckpointProblem(
            f"{shown}: it was started in {printable(str(start.cwd))}, and there is no such folder",
            advice="Start the program yourself; it goes on by itself.",
        )
    if start.run is not None and not _is_same(start.run, folder):
        raise CheckpointProblem(
            f"{shown}: its program writes to {printable(str(start.run))}, and would not go on "
            "with this folder",
            advice="Move the folder back, or start the program with this one.",
        )
    return start


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _write_command(start: Start) -> None:
    # One line each, unbroken, so that they can be copied.
    sys.stdout.write(f"  cd {printable(shlex.quote(str(start.cwd)))}\n")
    sys.stdout.write(f"  {printable(shlex.join([_program(start), *start.argv[1:]]))}\n")
    sys.stdout.flush()


def _program(start: Start) -> str:
    """Return the interpreter's path: the one that ran, or else what its name stands for here.

    Raises:
        CheckpointProblem: it is not there.
    """
    for name in filter(None, (start.executable, start.argv[0])):
        path = shutil.which(str(start.cwd / name) if os.sep in name else name)
        if path is not None:
            return path
    raise CheckpointProblem(
        f"the program {printable(start.executable or start.argv[0])} is not there",
        advice="Start the run yourself; it goes on by itself.",
    )


def _says_yes() -> bool:
    sys.stdout.write("Run it? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _become(start: Start) -> int:
    """Turn this process into the program; does not return."""
    program = _program(start)
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(start.cwd)
    try:
        os.execv(program, [program, *start.argv[1:]])  # noqa: S606  (the user said yes to it)
    except OSError as error:
        raise CheckpointProblem(
            f"{printable(program)} can't be started ({error.strerror or error})"
        ) from None
