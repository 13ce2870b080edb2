"""`torchkeep scan`: whether model files are safe to load, one verdict for each."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

from torchkeep.cli.failures import EXIT_NOT_DATA_ONLY, report
from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.text import clip
from torchkeep.errors import FileMissing
from torchkeep.wording import counted, printable

if TYPE_CHECKING:
    from torchkeep.identify.scan import Missing, Scanned, Skipped

DESCRIPTION = """\
Say of each model file what loading it could do. Folders and archives are looked
into. Nothing in the files runs, nothing is imported, no PyTorch is needed."""

EPILOG = """\
verdicts:
  data-only    it holds data and no code
  needs-trust  loading it runs code by name, or a program that it holds
  dangerous    it uses what no model needs, or plays tricks: do not load it
  ambiguous    it is damaged or unknown, or other programs see something else

examples:
  torchkeep scan model.pth                 one file
  torchkeep scan downloads/                all files in a folder and below it
  torchkeep scan --json *.pt | jq .verdict

In a folder, what is plainly no model (text, pictures) is skipped and counted.

The exit code is 0 if everything is data-only, else 13; or 3, if all that is
wrong is that there is nothing at a path."""

_VERDICTS = ("dangerous", "ambiguous", "needs-trust", "data-only")
_COLOURS = {"dangerous": "1;31", "ambiguous": "31", "needs-trust": "33", "data-only": "32"}
_INDENT = len("needs-trust") + 2
_LONGEST_REASON = 300


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "scan",
        help="say which model files are safe to load",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a file, or a folder of files")
    parser.add_argument("--json", action="store_true", help="write JSON, one line per file")
    parser.add_argument("--skipped", action="store_true", help="list what was skipped, too")
    add_limits(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Scan each path, and return 0 if all of it is there and data-only."""
    from torchkeep.identify.scan import scan_each

    counts: Counter[str] = Counter()
    for item in scan_each(*options.paths, limits=limits_of(options)):
        counts[_kind(item)] += 1
        if options.json:
            sys.stdout.write(json.dumps(item.to_json()) + "\n")
        _write(item, options)
    if not options.json:
        sys.stdout.write(_summary(counts) + "\n")
    if not set(counts) <= {"data-only", "skipped", "missing"}:
        return EXIT_NOT_DATA_ONLY
    return FileMissing.exit_code if counts["missing"] else 0


def _kind(item: Scanned | Skipped | Missing) -> str:
    from torchkeep.identify.scan import Scanned, Skipped

    if isinstance(item, Scanned):
        return item.verdict
    return "skipped" if isinstance(item, Skipped) else "missing"


def _write(item: Scanned | Skipped | Missing, options: argparse.Namespace) -> None:
    """Write what a person reads of one path; with `--json`, what is missing."""
    from torchkeep.identify.scan import Missing, Scanned

    if isinstance(item, Missing):
        sys.stdout.flush()
        report(item.problem)
    elif options.json:
        return
    elif isinstance(item, Scanned):
        _write_scanned(item)
    elif options.skipped:
        _write_skipped(item)


def _write_scanned(item: Scanned) -> None:
    reason = ""
    if item.verdict != "data-only" and item.findings:
        more = len(item.findings) - 1
        reason = clip(item.findings[0].text, _LONGEST_REASON)
        reason += f" (and {counted(more, 'other reason')})" if more else ""
    _write_line(item.verdict, printable(item.path), reason)


def _write_skipped(item: Skipped) -> None:
    _write_line("skipped", printable(item.path), clip(item.reason, _LONGEST_REASON))


def _write_line(head: str, path: str, reason: str) -> None:
    """Write one line; in a terminal that is too narrow, the reason goes below the path."""
    coloured = head
    line = f"{path}: {reason}" if reason else path
    if sys.stdout.isatty():
        import shutil
        import textwrap

        if not os.environ.get("NO_COLOR") and head in _COLOURS:
            coloured = f"\x1b[{_COLOURS[head]}m{head}\x1b[0m"
        width = shutil.get_terminal_size().columns - _INDENT
        if len(line) > width > 20:
            below = textwrap.wrap(reason, width - 2)
            line = "\n".join([path, *(" " * (_INDENT + 2) + part for part in below)])
    sys.stdout.write(f"{coloured}{' ' * (_INDENT - len(head))}{line}\n")


def _summary(counts: Counter[str]) -> str:
    """Return the last line: how many files of which kind."""
    judged = sum(counts[verdict] for verdict in _VERDICTS)
    parts = [f"{counts[verdict]:,} {verdict}" for verdict in _VERDICTS if counts[verdict]]
    text = counted(judged, "file") + (f": {', '.join(parts)}" if parts else "")
    for kind, words in (("skipped", "skipped, no models"), ("missing", "missing")):
        text += f"; {counts[kind]:,} {words}" if counts[kind] else ""
    return text
