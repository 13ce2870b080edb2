"""What retraining is worth, on real data that ships in a package: scikit-learn's digits.

    python benchmarks/retraining.py            three seeds, a quarter of an hour on one core
    python benchmarks/retraining.py --quick    one seed, few epochs: to see that it works

A ResNet18 is trained from scratch on all digits, and evaluated on the fifth of them that it has not
seen.

Then, for each seed, a small vision transformer is trained on 0 to 4 alone, and retrained for 5 to 9
with ten images of each; and beside it one is trained on the same fifty images from scratch, for as
many steps. Both are evaluated, at the end, on all other images of 5 to 9. Both are tried with the
same learning rates, and each counts with the one that suits it best. A transformer has to learn
from data what a convolution knows of images; a ResNet18 needs no help with digits this small.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from torchkeep.training.classifier import load_classifier
from torchkeep.training.data import ImageFolder, open_data
from torchkeep.training.data.samples import Samples
from torchkeep.training.evaluation import evaluate
from torchkeep.training.preparing import Prepared, prepare
from torchkeep.training.retraining import LAST_FILE, retrain
from torchkeep.training.settings import Settings

NUM_PER_CLASS = 10
RATES = (3e-4, 1e-3, 3e-3)
TRANSFORMER = "timm/test_vit(img_size=32, patch_size=4)"


def write(root: Path, labels: range) -> Path:
    """Write the digits of these labels as images, a folder per class."""
    data = open_data("digits")
    for part in (data.train, data.val):
        for number in range(len(part)):
            picture, label = part[number]
            if label in labels:
                folder = root / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{len(list(folder.iterdir()))}.png")
    return root


def few(prepared: Prepared, seed: int) -> tuple[Prepared, Samples]:
    """Keep ten images of each class to train on; return all others, to evaluate on at the end."""
    train, val = prepared.data.train.samples, prepared.data.val.samples
    assert isinstance(train, ImageFolder)
    everything = [*train.samples, *val.samples]
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed)).tolist()
    kept: dict[int, list] = {}
    others = []
    for at in order:
        path, label = everything[at]
        mine = kept.setdefault(label, [])
        (mine if len(mine) < NUM_PER_CLASS else others).append((path, label))
    train.samples = [item for items in kept.values() for item in items]
    val.samples = others
    rest = prepared.data.val
    # Nothing is chosen by them, so that a few are enough to look at after each epoch.
    data = replace(prepared.data, val=Subset(rest, range(NUM_PER_CLASS)))
    return replace(prepared, data=data), rest


def usual(arch: str, seed: int, **options: Any) -> Settings:
    return Settings(arch=arch, size=32, check=False, seed=seed, **options)


def whole(data: Path, run: Path, epochs: int) -> float:
    """Train on all digits; return the accuracy on those that were not seen."""
    settings = usual(
        "resnet18",
        0,
        weights="none",
        lr=2e-3,
        batch_size=64,
        epochs=epochs,
        warmup_epochs=epochs / 12,
    )
    result = retrain(prepare(data, settings), run)
    return result.history[-1]["val_accuracy"]


def pretrained(data: Path, run: Path, seed: int, epochs: int) -> Path:
    """Train on half of the classes; return the file."""
    options = {"lr": 1e-3, "batch_size": 64, "epochs": epochs, "warmup_epochs": epochs / 12}
    retrain(prepare(data, usual(TRANSFORMER, seed, weights="none", **options)), run)
    return run / LAST_FILE


def retrained(data: Path, run: Path, seed: int, weights: str, lr: float, epochs: int) -> float:
    """Train on few images; return the accuracy on all others, at the end."""
    options = {"lr": lr, "batch_size": 25, "epochs": epochs, "warmup_epochs": epochs / 12}
    prepared, rest = few(prepare(data, usual(TRANSFORMER, seed, weights=weights, **options)), seed)
    retrain(prepared, run)
    model, _ = load_classifier(run / LAST_FILE)
    return evaluate(model, DataLoader(rest, 200)).accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    epochs, pre_epochs, few_epochs = (1, 1, 2) if given.quick else (6, 60, 40)
    seeds = range(1 if given.quick else given.seeds)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        accuracy = whole(write(folder / "all", range(10)), folder / "run", epochs)
        print(f"ResNet18 from scratch, all digits, {epochs} epochs: {accuracy:.2%}\n", flush=True)
        low, high = write(folder / "low", range(5)), write(folder / "high", range(5, 10))
        print("| learning rate | seed | retrained | from scratch |\n| ---: | ---: | ---: | ---: |")
        scores: dict[str, dict[float, list[float]]] = {name: {} for name in ("again", "scratch")}
        for seed in seeds:
            starts = {
                "again": str(pretrained(low, folder / f"low-{seed}", seed, pre_epochs)),
                "scratch": "none",
            }
            for lr in RATES:
                for name, weights in starts.items():
                    run = folder / f"{name}-{lr}-{seed}"
                    found = retrained(high, run, seed, weights, lr, few_epochs)
                    scores[name].setdefault(lr, []).append(found)
                again, scratch = (scores[name][lr][-1] for name in scores)
                print(f"| {lr:g} | {seed} | {again:.2%} | {scratch:.2%} |", flush=True)
    summarise(scores)


def summarise(scores: dict[str, dict[float, list[float]]]) -> None:
    """Print what each comes to with the rate that suits it best, seed by seed."""
    best = {name: max(of.values(), key=statistics.mean) for name, of in scores.items()}
    print("\n| at its best rate, seed | retrained | from scratch | |\n| --- | ---: | ---: | ---: |")
    rows = [(str(seed), *pair) for seed, pair in enumerate(zip(*best.values(), strict=True))]
    rows.append(("mean", *(statistics.mean(of) for of in best.values())))
    for name, again, scratch in rows:
        print(f"| {name} | {again:.2%} | {scratch:.2%} | {again - scratch:+.2%} |")


if __name__ == "__main__":
    main()
