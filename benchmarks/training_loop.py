"""What the loop of `torchkeep train` costs, beside bare PyTorch that does the same work.

    python benchmarks/training_loop.py            some minutes
    python benchmarks/training_loop.py --quick    tiny: to see that it works

Both train the same ResNet18 on the same images, evaluate it after each epoch and save model and
optimizer to the disk, synced; they take turns, and a number is the median over the rounds.
torchkeep also keeps the generators and the order of the samples, seeds each sample, watches
gradients and tensors, reads each checkpoint back, and writes the history and the best model. What
comes once, the check-up before the first step and the report at the end, is told apart.

Then the input pipelines alone, without training: photographs of 400 x 300 pixels, decoded, cropped
at random, mirrored and normalised, as torchvision's reference does it for training
(`references/classification/presets.py`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from torchkeep.training.data import ImageFolder, Preprocessing, transform_of
from torchkeep.training.preparing import loaders, prepare
from torchkeep.training.retraining import Event, retrain
from torchkeep.training.settings import Settings


def bare(settings: Settings, folder: Path) -> tuple[float, float]:
    """Train as a script would; return the seconds of the loop, and of what comes once."""
    prepared = prepare("digits", settings)
    model, optimizer = prepared.start.model, prepared.optimizer
    train, val = loaders(prepared)
    start = time.perf_counter()
    for epoch in range(settings.epochs):
        model.train()
        total = 0.0
        for images, labels in train:
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in val:
                correct += (model(images).argmax(1) == labels).sum().item()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, folder / f"{epoch}.pth")
        with (folder / f"{epoch}.pth").open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - start, 0.0


def ours(settings: Settings, folder: Path, *, check: bool = True) -> tuple[float, float]:
    """Train with torchkeep; return likewise."""
    times: list[float] = []

    def notify(event: Event) -> None:
        if event.kind in ("begun", "epoch"):
            times.append(time.perf_counter())

    prepared = prepare("digits", replace(settings, check=check))
    start = time.perf_counter()
    retrain(prepared, folder / "run", notify=notify)
    whole = time.perf_counter() - start
    loop = times[-1] - times[0]
    return loop, whole - loop


def compare(rounds: int, settings: Settings, contestants: dict[str, Callable]) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds):
        turn = list(contestants)
        for name in turn[number % len(turn) :] + turn[: number % len(turn)]:
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(contestants[name](settings, Path(folder)))
    base = statistics.median(loop for loop, _ in times["bare PyTorch"])
    print("| | loop, s | ratio | once, s |\n| --- | ---: | ---: | ---: |")
    for name, found in times.items():
        loop, once = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {loop:.2f} | {loop / base:.3f} | {once:.2f} |")


def photographs(folder: Path, count: int) -> None:
    """Write JPEG files that are as hard to decode as photographs are."""
    generator = np.random.default_rng(0)
    for number in range(count):
        place = folder / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        rough = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((400, 300), Image.Resampling.BICUBIC)
        picture.save(place / f"{number}.jpg", quality=90)


def pipelines(folder: Path, rounds: int) -> None:
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            v2.ToPureTensor(),
        ]
    )
    sets = {
        "torchvision's reference": torchvision.datasets.ImageFolder(folder, reference),
        "torchkeep": ImageFolder(folder, transform_of(Preprocessing(), "standard")),
    }
    times: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(rounds):
        for name, data in sets.items():
            start = time.perf_counter()
            for _batch in DataLoader(data, 32, shuffle=True):
                pass
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["torchvision's reference"])
    count = len(sets["torchkeep"])
    print("\n| input pipeline | images/s | time, ratio |\n| --- | ---: | ---: |")
    for name, found in times.items():
        median = statistics.median(found)
        print(f"| {name} | {count / median:.0f} | {median / base:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if given.quick else given.rounds
    settings = Settings(
        arch="timm/test_resnet" if given.quick else "resnet18",
        weights="none",
        size=32,
        epochs=1 if given.quick else 3,
        batch_size=64,
        augment="none",
        schedule="constant",
    )
    contestants = {
        "bare PyTorch": bare,
        "torchkeep train": ours,
        "torchkeep train --no-check": partial(ours, check=False),
    }
    compare(rounds, settings, contestants)
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), 16 if given.quick else 400)
        pipelines(Path(folder), rounds)


if __name__ == "__main__":
    main()
