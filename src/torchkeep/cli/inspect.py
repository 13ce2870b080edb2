"""`torchkeep inspect`: what a model file holds."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from torchkeep.cli.failures import EXIT_INCOMPLETE, report, warn
from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.progress import reading_progress
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, NotAModelFile

if TYPE_CHECKING:
    from torchkeep.identify import Inspection
    from torchkeep.pickles.limits import Limits

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
    parser.add_argument(
        "files", metavar="PATH", nargs="+", help="a model file of any kind, or a folder of one"
    )
    parser.add_argument("--json", action="store_true", help="write JSON, one line per file")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--tree", action="store_true", help="show the modules of a pickled model")
    parser.add_argument(
        "--verify", action="store_true", help="read the tensors too, and compare their checksums"
    )
    add_limits(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Inspect each file, and return the exit code of the first problem, or 0."""
    limits = limits_of(options)
    codes = [_inspect(path, limits, options) for path in options.files]
    return next(filter(None, codes), 0)


def _inspect(path: str, limits: Limits, options: argparse.Namespace) -> int:
    """Inspect one file, and return its exit code."""
    from torchkeep.formats import examine
    from torchkeep.identify import identify

    try:
        inspection = identify(examine(path, limits=limits), limits)
    except FileProblem as error:  # there is no file, or nothing can be told of it
        return report(error.in_file(path))
    problem = inspection.contents.problem
    if not isinstance(problem, _NOTHING_TO_SHOW):
        problem = None  # a model of another ecosystem: its header was read to the end
    if options.verify and problem is None:
        inspection, problem = _verified(inspection, limits)
    try:
        if problem is not None:
            return _write_problem(inspection, problem, options)
        _write(inspection, options)
    except FileProblem as error:  # a tree that is too large to be shown
        return report(error)
    if inspection.integrity.state == "damaged":
        return DamagedFile.exit_code
    return EXIT_INCOMPLETE if options.verify and not inspection.integrity.ok else 0


_NOTHING_TO_SHOW = (DamagedFile, LimitReached, NotAModelFile)


def _verified(inspection: Inspection, limits: Limits) -> tuple[Inspection, FileProblem | None]:
    """Return the inspection after the tensors were read, and what kept them from being read."""
    from torchkeep.identify.integrity import verify_inspected

    try:
        integrity = verify_inspected(inspection.contents, limits, reading_progress())
    except FileProblem as problem:
        return inspection, problem.in_file(inspection.path)
    return replace(inspection, integrity=integrity), None


def _write_problem(
    inspection: Inspection, problem: FileProblem, options: argparse.Namespace
) -> int:
    """Say what is wrong with a file, and what could be seen of it all the same."""
    if options.json or inspection.contents.root is not None:
        _write(inspection, options)
    if inspection.safety.verdict == "dangerous":
        named = [item.place for item in inspection.safety.findings if item.severity == "dangerous"]
        warn(
            f"{inspection.path}: what can be read of it is dangerous ({', '.join(named[:3])}). "
            "Don't load it."
        )
    return report(problem)


def _write(inspection: Inspection, options: argparse.Namespace) -> None:
    if options.json:
        document = inspection.to_json(tensors=options.tensors)
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
        return
    from torchkeep.cli.render import write_inspection

    title = str(inspection.path) if len(options.files) > 1 else ""
    write_inspection(inspection, tensors=options.tensors, tree=options.tree, title=title)
