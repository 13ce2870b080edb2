"""The demo's data and network: handwritten digits, and a ResNet18 for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.models import resnet18  # type: ignore[import-untyped]

from torchkeep.checkpointing import seed_all
from torchkeep.training.data import ImageFolder, transform_of
from torchkeep.training.data.preprocessing import for_size

_GREY = (0.5, 0.5, 0.5)
VALIDATION_EVERY = 5
"""Each fifth image of a digit is for validation."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How large the demo is. The child processes get it as command-line options."""

    num_epochs: int = 4
    """Epochs of the training from scratch."""
    batch_size: int = 64
    """Images per step."""
    every_steps: int = 10
    """Steps between two checkpoints."""
    size: int = 32
    """Height and width of the images that the network sees, in pixels."""
    num_threads: int = 1
    """Threads that compute. Sums depend on it, so it is the same in every run. More than one are
    faster on an idle machine, and many times slower on a busy one, where they wait for each other.
    """
    seed: int = 2024
    """What every random number follows from."""
    max_per_digit: int | None = None
    """Use at most so many images of each digit."""
    transfer_epochs: int = 3
    """Epochs of the training of the new head."""
    least_accuracy: float = 0.9
    """What a network must get right, as a share, for the demo to be worth looking at."""


def write_digits(folder: Path, *, max_per_digit: int | None = None) -> tuple[int, int]:
    """Write scikit-learn's digits as `folder/{train,val}/{0..9}/*.png`; return the two counts.

    They are 1,797 images of 8 x 8 pixels in 17 shades, from the UCI repository: Alpaydin and
    Kaynak, Optical Recognition of Handwritten Digits.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    seen: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for pixels, target in zip(digits.images, digits.target, strict=True):
        name = str(target)
        number = seen[name]
        seen[name] += 1
        if max_per_digit is not None and number >= max_per_digit:
            continue
        part = "val" if number % VALIDATION_EVERY == 0 else "train"
        target_folder = folder / part / name
        target_folder.mkdir(parents=True, exist_ok=True)
        shades = bytes(min(int(shade) * 16, 255) for row in pixels for shade in row)
        Image.frombytes("L", (8, 8), shades).save(target_folder / f"{number:03d}.png")
        written[part] += 1
    return written["train"], written["val"]


def loaders(
    data: Path, settings: Settings, *, classes: Sequence[str] | None = None, num_workers: int = 0
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of the training and the validation images."""
    recipe = for_size(settings.size, mean=_GREY, std=_GREY)
    augmented, plain = transform_of(recipe, "light"), transform_of(recipe)
    train = ImageFolder(data / "train", augmented, classes=classes)
    val = ImageFolder(data / "val", plain, classes=classes)
    return (
        DataLoader(train, settings.batch_size, shuffle=True, num_workers=num_workers),
        DataLoader(val, 2 * settings.batch_size),
    )


def new_network(num_classes: int = 10) -> torch.nn.Module:
    """Return a ResNet18 with random weights."""
    network: torch.nn.Module = resnet18(weights=None, num_classes=num_classes)
    return network


def prepare(settings: Settings) -> None:
    """Make this process compute reproducibly."""
    torch.set_num_threads(settings.num_threads)
    torch.use_deterministic_algorithms(True)
    seed_all(settings.seed)
