"""The demo's data: handwritten digits as folders of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

TEN = {number: str(number) for number in range(10)}
"""All digits, called by their numbers."""

FIVE = {5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
"""The digits of the new task, called by words: classes that the first network does not know."""

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


def write_digits(
    folder: Path, names: Mapping[int, str], *, max_per_digit: int | None = None
) -> tuple[int, int]:
    """Write scikit-learn's digits as `folder/{train,val}/NAME/*.png`; return the two counts.

    The names say which digits, and what their folders are called.

    They are 1,797 images of 8 x 8 pixels in 17 shades, from the UCI repository: Alpaydin and
    Kaynak, Optical Recognition of Handwritten Digits.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    seen: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for pixels, target in zip(digits.images, digits.target, strict=True):
        if int(target) not in names:
            continue
        name = names[int(target)]
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
