"""`torchkeep predict`: what a classifier says of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchkeep.cli import failures
from torchkeep.cli.checkpoints import require_torch
from torchkeep.cli.classifiers import add_classifier, classifier_of
from torchkeep.cli.numbers import whole
from torchkeep.cli.text import elide
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.errors import FileProblem
    from torchkeep.training.prediction import Prediction

DESCRIPTION = """\
Say what is in images, with a model that `torchkeep train` has written. The file
has all that is needed: the network, the names of the classes, and how an image
has to be prepared."""

EPILOG = """\
examples:
  torchkeep predict runs/photos/best.safetensors cat.jpg dog.jpg
  torchkeep predict --top 1 best.safetensors inbox/*.jpg
  torchkeep predict --json best.safetensors cat.jpg | jq .

The exit code is 0, or that of a problem. `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "predict",
        help="say what is in images, with a trained model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_classifier(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument(
        "--top", metavar="N", type=whole(1), default=3, help="how many classes to tell"
    )
    parser.add_argument("--json", action="store_true", help="write a line of JSON per image")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Say what is in each image; return 0, or the code of the first one that can't be read."""
    require_torch("predict")
    from torchkeep.training.prediction import predict

    model, card = classifier_of(options)
    codes: list[int] = []

    def failed(error: FileProblem) -> None:
        codes.append(failures.report(error))

    for found in predict(model, card, options.images, top=options.top, failed=failed):
        sys.stdout.write(_as_json(found) if options.json else _as_text(found))
        sys.stdout.flush()
    return codes[0] if codes else 0


def _as_json(found: Prediction) -> str:
    told = [{"class": name, "probability": value} for name, value in _pairs(found)]
    return json.dumps({"path": str(found.path), "classes": told}) + "\n"


def _as_text(found: Prediction) -> str:
    told = ", ".join(f"{elide(name, 40)} {value:.1%}" for name, value in _pairs(found))
    return f"{printable(str(found.path))}: {told}\n"


def _pairs(found: Prediction) -> Iterator[tuple[str, float]]:
    return zip(found.classes, found.probabilities, strict=True)
