"""`torchkeep rescue`: weights, structure and source texts of a model whose classes are gone."""

from __future__ import annotations

import argparse
import sys

from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.text import clip
from torchkeep.wording import counted, printable

DESCRIPTION = """\
Take out of a whole model (torch.save(model), in any release) what can be saved
without its classes: the weights, the structure, the source texts of old files.
Nothing in the file runs."""

EPILOG = """\
what is in the new folder:
  weights.safetensors   the state dict, under the names the live model would have
  structure.txt, .json  the modules, with what their constructors got
  sources/*.py          the source texts in the file; read before you run one
  README.txt            what is what, and how to go on

examples:
  torchkeep rescue model.pt rescued/     the classes are gone: what is left?
  torchkeep rescue yolo.pt rescued/      each model of a checkpoint, in a folder"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "rescue",
        help="take weights and structure out of a model whose classes are gone",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the file of a whole model")
    parser.add_argument("folder", metavar="FOLDER", help="where to put it; made anew")
    add_limits(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Rescue a file's models into a folder, and return 0."""
    from torchkeep.rescuing import rescue

    report = rescue(options.file, options.folder, limits=limits_of(options))
    for model in report.models:
        parts = [
            f"{clip(model.class_path)}, {counted(model.num_parameters, 'parameter')} in "
            f"{counted(model.num_tensors, 'tensor')}"
        ]
        if model.sources:
            parts.append(counted(len(model.sources), "source text"))
        if model.left_out:
            parts.append(f"left out, being no plain tensors: {clip(', '.join(model.left_out))}")
        sys.stdout.write(f"{printable(str(model.folder))}: {'; '.join(parts)}\n")
    return 0
