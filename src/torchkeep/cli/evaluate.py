"""`torchkeep evaluate`: how good a classifier is on a folder of images."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import require_torch, write_lines
from torchkeep.cli.classifiers import add_classifier, classifier_of
from torchkeep.cli.numbers import whole
from torchkeep.cli.text import elide
from torchkeep.showing import table
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from torchkeep.training.classifier import Card
    from torchkeep.training.evaluation import Answers

DESCRIPTION = """\
Say how good a model that `torchkeep train` has written is on images: how many it
gets right, in all and of each class. Classes go by their names, so that the
folder may lack some, and their order does not matter."""

EPILOG = """\
examples:
  torchkeep evaluate runs/photos/best.safetensors photos/test
  torchkeep evaluate --json best.safetensors photos/test

Of a folder that has val/, or that torchkeep train would split, the validation
part is taken; --all takes the one to train on as well.

The exit code is 0, or that of a problem. `torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "evaluate",
        help="say how good a trained model is on images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_classifier(parser)
    parser.add_argument("data", metavar="DATA", help="a folder of images, or a data set's name")
    parser.add_argument("--all", action="store_true", help="take all images, not validation alone")
    parser.add_argument("--val-share", metavar="SHARE", type=float, default=0.2, help="as in train")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="as in train")
    parser.add_argument(
        "--batch-size", metavar="N", type=whole(1), default=64, help="images at once"
    )
    parser.add_argument("--workers", metavar="N", type=whole(0), default=0, help="that load them")
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate a model; return 0."""
    require_torch("evaluate")
    from torchkeep.training.data.workers import as_without_workers
    from torchkeep.training.evaluation import answers
    from torchkeep.training.records.history import json_line

    model, card = classifier_of(options)
    with as_without_workers():
        found = answers(model, _batches(options, card), device=next(model.parameters()).device)
    result = _result(found, card)
    if options.json:
        sys.stdout.write(json_line(result))
    else:
        _write(options.model, result)
    return 0


def _batches(options: argparse.Namespace, card: Card) -> DataLoader[Any]:
    from torch.utils.data import DataLoader

    from torchkeep.training.data import open_validation, transform_of

    transform = transform_of(card.preprocessing)
    data = open_validation(
        options.data,
        classes=card.classes,
        whole=options.all,
        val_share=options.val_share,
        seed=options.seed,
    )
    samples = data.transformed(transform, transform).val
    return DataLoader(samples, options.batch_size, num_workers=options.workers)


def _result(found: Answers, card: Card) -> dict[str, Any]:
    """Return what is told, in all and of each class."""
    confusion = found.confusion(len(card.classes))
    classes = [
        {"class": name, "num_samples": sum(row), "num_correct": row[label]}
        for label, (name, row) in enumerate(zip(card.classes, confusion, strict=True))
    ]
    num_samples = len(found.labels)
    num_correct = int((found.labels == found.predicted).sum())
    return {
        "num_samples": num_samples,
        "num_correct": num_correct,
        "accuracy": num_correct / num_samples,
        "loss": float(found.loss.mean()),
        "classes": classes,
    }


def _write(model: str, result: dict[str, Any]) -> None:
    line = (
        f"{model}: {result['num_correct']:,} of {result['num_samples']:,} right, "
        f"{result['accuracy']:.2%}; loss {result['loss']:.4f}"
    )
    write_lines([printable(line)])
    cells = [("class", "images", "right", "")]
    for row in result["classes"]:
        count, right = row["num_samples"], row["num_correct"]
        share = f"{right / count:.1%}" if count else ""
        cells.append((elide(row["class"], 40), f"{count:,}", f"{right:,}", share))
    sys.stdout.writelines(f"{line}\n" for line in table(cells, right=(1, 2, 3)))
