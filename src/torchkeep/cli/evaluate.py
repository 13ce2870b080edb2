"""`torchkeep evaluate`: how good a classifier is on a folder of images."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from torchkeep.cli.checkpoints import require_torch, table, write_lines
from torchkeep.cli.numbers import whole
from torchkeep.cli.text import elide
from torchkeep.wording import printable

DESCRIPTION = """\
Say how good a model that `torchkeep train` has written is on images: how many it
gets right, in all and of each class. Classes go by their names, so that the
folder may lack some, and their order does not matter."""

EPILOG = """\
examples:
  torchkeep evaluate runs/photos/best.safetensors photos/test
  torchkeep evaluate --json best.safetensors photos/test

Of a folder that has train/ and val/, or that torchkeep train would split, the
validation part is taken; --all takes everything.

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
    parser.add_argument("model", metavar="MODEL", help="a model that torchkeep train has written")
    parser.add_argument("data", metavar="DATA", help="a folder of images, or a data set's name")
    parser.add_argument("--all", action="store_true", help="take all images, not validation alone")
    parser.add_argument("--val-share", metavar="SHARE", type=float, default=0.2, help="as in train")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="as in train")
    parser.add_argument(
        "--batch-size", metavar="N", type=whole(1), default=64, help="images at once"
    )
    parser.add_argument("--workers", metavar="N", type=whole(0), default=0, help="that load them")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--arch", metavar="NAME", help="the network, if it is module:callable: code of your own"
    )
    parser.add_argument("--json", action="store_true", help="write JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate a model; return 0."""
    require_torch("evaluate")
    from torchkeep.training.classifier import load_classifier
    from torchkeep.training.data.workers import as_without_workers
    from torchkeep.training.evaluation import answers
    from torchkeep.training.machine import chosen_device

    model, card = load_classifier(options.model, arch=options.arch)
    device = chosen_device(options.device)
    with as_without_workers():
        found = answers(model.to(device), _batches(options, card), device=device)
    confusion = found.confusion(len(card.classes))
    rows: list[dict[str, Any]] = [
        {"class": name, "num_samples": sum(row), "num_correct": row[label]}
        for label, (name, row) in enumerate(zip(card.classes, confusion, strict=True))
    ]
    num_samples, num_correct = len(found.labels), sum(row["num_correct"] for row in rows)
    result = {
        "num_samples": num_samples,
        "num_correct": num_correct,
        "accuracy": num_correct / num_samples,
        "loss": float(found.loss.mean()),
        "classes": rows,
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    write_lines(
        [
            printable(
                f"{options.model}: {num_correct:,} of {num_samples:,} right, "
                f"{num_correct / num_samples:.2%}; loss {result['loss']:.4f}"
            )
        ]
    )
    cells = [("class", "images", "right", "")]
    for row in rows:
        count = row["num_samples"]
        share = f"{row['num_correct'] / count:.1%}" if count else ""
        cells.append((elide(row["class"], 40), f"{count:,}", f"{row['num_correct']:,}", share))
    sys.stdout.writelines(f"{line}\n" for line in table(cells, right=(1, 2, 3)))
    return 0


def _batches(options: argparse.Namespace, card: Any) -> Any:
    from torch.utils.data import ConcatDataset, DataLoader

    from torchkeep.training.data import open_data, transform_of

    transform = transform_of(card.preprocessing)
    data = open_data(
        options.data, classes=card.classes, val_share=options.val_share, seed=options.seed
    ).transformed(transform, transform)
    samples = ConcatDataset([data.train, data.val]) if options.all else data.val
    return DataLoader(samples, options.batch_size, num_workers=options.workers)
