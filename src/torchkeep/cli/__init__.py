"""The command line: `torchkeep VERB ...`.

Each verb is a file with `add_parser`, which describes it, and `run`, which does it and returns the
exit code. What a verb needs is imported in `run`, so that `torchkeep inspect` starts in a blink.
Of the verbs only `inspect` needs rich, in `render.py`, and the demo, which tells its own story;
`scan` colours its lines, and `progress.py` draws a bar. Nothing ends in a traceback.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import torchkeep
from torchkeep.cli import (
    convert,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    failures,
    inspect,
    match,
    predict,
    prune,
    rescue,
    resume,
    runs,
    scan,
    slim,
    train,
    verify,
)

VERBS = (
    inspect,
    scan,
    verify,
    match,
    diff,
    convert,
    rescue,
    slim,
    train,
    evaluate,
    predict,
    export,
    runs,
    resume,
    prune,
    doctor,
    demo,
)

DESCRIPTION = """\
Look into PyTorch model files without running anything in them; scan, verify,
compare, convert and rescue them, and see whether they fit a network. List
training runs and their checkpoints, resume them, and keep them in order."""

EXAMPLES = """\
examples:
  torchkeep inspect model.pth            what is this file, and is it safe?
  torchkeep inspect --json *.pt | jq .   the same for programs
  torchkeep scan downloads/              which of these are safe to load?
  torchkeep verify model.pth             is every byte as it was written?
  torchkeep match model.pth --arch timm/resnet18   would it load?
  torchkeep diff before.pth after.pth    what changed, and how far?
  torchkeep convert a.pth b.safetensors  the same in another format, proven
  torchkeep rescue model.pt rescued/     its classes are gone: what is left?
  torchkeep train photos/ --weights theirs.pth   retrain it on your images
  torchkeep slim a.pth --arch resnet18 --ratio 0.5 -o b.safetensors   smaller
  torchkeep predict best.safetensors cat.jpg     what is it?
  torchkeep export runs/photos photos.onnx --data photos   for production
  torchkeep runs runs/                   which checkpoints are there?
  torchkeep resume runs/mine             go on after the last one
  torchkeep prune runs/mine --keep-last 2   delete older ones
  torchkeep doctor runs/mine             would it go on bit for bit?
  torchkeep demo                         train, kill, resume, and prove it

`torchkeep VERB --help` explains a verb. From Python: `import torchkeep`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: the words after `torchkeep`; None takes them from the process.

    Raises:
        SystemExit: from `--help`, `--version` and a wrong command line, as argparse does it.
    """
    # Pillow's warning about a photo of 90 megapixels; of what is twice as large it raises.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    for stream in (sys.stdout, sys.stderr):
        _escape_what_it_cannot_encode(stream)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = make_parser().parse_args(words)
        options.words = words
        code: int = options.run(options)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return failures.report_any(error)
    return code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    codes = "".join(f"  {code:<4} {meaning}\n" for code, meaning in failures.EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="torchkeep",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"torchkeep {torchkeep.__version__}"
    parser.add_argument("--version", action="version", version=version)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def _escape_what_it_cannot_encode(stream: TextIO) -> None:
    # A name in a script that the terminal's encoding lacks must not end in a UnicodeEncodeError.
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
