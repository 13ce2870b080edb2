"""What retraining is worth, on real data that ships in a package: scikit-learn's digits.

    python benchmarks/retraining.py            three seeds, some ten minutes
    python benchmarks/retraining.py --quick    one seed, few epochs: to see that it works

A ResNet18 is trained from scratch on all digits, and evaluated on the fifth of them that it has not
seen. Then, for each seed, one is trained on 0 to 4 alone, and retrained for 5 to 9 with ten images
of each; and beside it one is trained on the same fifty images from scratch, for as many steps.
Both are evaluated on all other images of 5 to 9.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from torchkeep.training.data import ImageFolder, open_data
from torchkeep.training.retraining import Prepared, prepare, retrain
from torchkeep.training.settings import Settings

NUM_PER_CLASS = 10


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


def few(prepared: Prepared, seed: int) -> Prepared:
    """Keep ten images of each class to train on; all others are to evaluate on."""
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
    return prepared


def best(prepared: Prepared, folder: Path) -> tuple[float, Path]:
    result = retrain(prepared, folder)
    return result.history[result.best_epoch]["val_accuracy"], result.best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    epochs, few_epochs = (1, 2) if given.quick else (6, 15)
    usual = {"arch": "resnet18", "size": 32, "check": False, "lr": 2e-3, "batch_size": 64}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        settings = Settings(weights="none", epochs=epochs, warmup_epochs=0.5, **usual)
        accuracy, _ = best(prepare(write(folder / "all", range(10)), settings), folder / "run")
        print(f"ResNet18 from scratch, all digits, {epochs} epochs: {accuracy:.2%}\n", flush=True)
        print("| seed | retrained | from scratch | |\n| --- | ---: | ---: | ---: |", flush=True)
        low, high = write(folder / "low", range(5)), write(folder / "high", range(5, 10))
        rows = []
        for seed in range(1 if given.quick else given.seeds):
            begun = Settings(weights="none", epochs=epochs, seed=seed, **usual)
            _, weights = best(prepare(low, begun), folder / f"low-{seed}")
            scores = []
            for name, start in (("again", str(weights)), ("scratch", "none")):
                options = usual | {"batch_size": 25, "lr": 1e-3}
                retrained = Settings(weights=start, epochs=few_epochs, seed=seed, **options)
                prepared = few(prepare(high, retrained), seed)
                # The last epoch counts: to choose one by what it is evaluated on would flatter.
                result = retrain(prepared, folder / f"{name}-{seed}")
                scores.append(result.history[-1]["val_accuracy"])
            rows.append(scores)
            gain = scores[0] - scores[1]
            print(f"| {seed} | {scores[0]:.2%} | {scores[1]:.2%} | {gain:+.2%} |", flush=True)
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(f"| mean | {means[0]:.2%} | {means[1]:.2%} | {means[0] - means[1]:+.2%} |")


if __name__ == "__main__":
    main()
