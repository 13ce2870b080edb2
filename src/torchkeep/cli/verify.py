"""`torchkeep verify`: whether model files are whole, down to the last byte of the tensors."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from torchkeep.cli.failures import EXIT_INCOMPLETE, report
from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.progress import reading_progress
from torchkeep.cli.text import what_was_compared, wrapped
from torchkeep.errors import DamagedFile, FileProblem, TorchkeepError
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.identify.integrity import Integrity
    from torchkeep.pickles.limits import Limits

DESCRIPTION = """\
Read every byte of model files and compare it with what the files say about
themselves: sizes and ranges, the checksums of zip archives (which torch.load
never looks at), the digests that torchkeep saves."""

EPILOG = """\
examples:
  torchkeep verify model.pth                 is this download whole?
  torchkeep verify runs/mine/step-00000200   a checkpoint, all its files
  torchkeep verify --json *.safetensors      one JSON object per path

A safetensors file or a file of PyTorch before 1.6 has no checksums: its tensors
are read, and counted as "nothing to compare with".

The exit code is 0 if everything was read and is whole, else that of the first
problem (5: a file is damaged; 14: something in it was left out or can't be
read, and is said). `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "verify",
        help="read every byte and compare the checksums",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="PATH", nargs="+", help="a model file, or a folder of one")
    parser.add_argument("--json", action="store_true", help="write JSON, one line per path")
    add_limits(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify each path, and return the exit code of the first problem, or 0."""
    limits = limits_of(options)
    codes = [_verify(path, limits, as_json=options.json) for path in options.files]
    return next(filter(None, codes), 0)


def _verify(path: str, limits: Limits, *, as_json: bool) -> int:
    from torchkeep.identify import verify

    try:
        found = verify(path, limits=limits, progress=reading_progress())
    except TorchkeepError as error:
        if as_json:
            problem = error.problem if isinstance(error, FileProblem) else str(error)
            _write_json(path, ok=False, problem=problem)
        return report(error)
    if as_json:
        _write_json(path, **found.to_json())
    else:
        _write(path, found)
    return _EXIT_CODES[found.state]


_EXIT_CODES = {"ok": 0, "incomplete": EXIT_INCOMPLETE, "damaged": DamagedFile.exit_code}


def _write_json(path: str, **fields: object) -> None:
    from torchkeep.identify.json_form import SCHEMA

    sys.stdout.write(json.dumps({"schema": SCHEMA, "path": path, **fields}) + "\n")


def _write(path: str, found: Integrity) -> None:
    head = found.state.ljust(len("damaged"))
    lines = [f"{head}  {printable(path)}: {what_was_compared(found)}"]
    for item in (*found.findings, *found.left_out):
        where = "" if item.place in item.text else f"{item.place}: "
        lines.append(" " * _INDENT + printable(where + item.text))
    sys.stdout.writelines(f"{wrapped(line, sys.stdout, indent=_INDENT)}\n" for line in lines)


_INDENT = len("damaged  ")
