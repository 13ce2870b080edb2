"""Load parameters into a fresh network, in a fresh process, and count what it gets right."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from torchkeep.demo.child import Report
from torchkeep.loading import load_into
from torchkeep.networks import build
from torchkeep.training import evaluate, replace_head
from torchkeep.training.classifier import read_card
from torchkeep.training.data import open_data, transform_of


def main() -> None:
    """Parse the options, load, evaluate under `eval()` without gradients, and report."""
    options = argparse.ArgumentParser(description="Evaluate a network on handwritten digits.")
    options.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    options.add_argument("--weights", type=Path, required=True, help="the model's file")
    options.add_argument("--report", type=Path, required=True, help="file to append to")
    given = options.parse_args()
    torch.set_num_threads(1)
    card = read_card(given.weights)
    assert card is not None  # noqa: S101 - the demo has just written it
    model = build(card.arch)
    replace_head(model, len(card.classes))
    loaded = load_into(model, given.weights)
    transform = transform_of(card.preprocessing)
    data = open_data(given.data, classes=card.classes).transformed(transform, transform)
    result = evaluate(model, DataLoader(data.val, 128))
    Report(given.report).add(
        "evaluated",
        num_loaded=len(loaded.loaded),
        coverage=loaded.coverage,
        num_proven=len(loaded.digests),
        num_correct=result.num_correct,
        num_samples=result.num_samples,
    )


if __name__ == "__main__":
    main()
