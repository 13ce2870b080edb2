"""Images in folders, one folder per class.

A label is a place in a list of class names that is kept with the model, never the position of a
folder in whatever happens to be on the disk: with one more folder, sorted positions move and every
label after it means something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2  # type: ignore[import-untyped]

from torchkeep.errors import FileMissing, WrongArgument

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})


class ImageFolder(Dataset[tuple[Any, int]]):
    """The images of `root/<class>/*` with their labels.

    Args:
        root: the folder of folders.
        transform: applied to each `PIL.Image` (RGB); see `image_transform`.
        classes: the class names; a label is a place in it. Folders that are not named are left
            out. By default every folder, numbers in numeric order.

    Attributes:
        classes: the class names by label.
        samples: `(file, label)` of each image, sorted.

    Raises:
        FileMissing: the folder, or one of the classes in it, is missing.
        WrongArgument: there are no classes, or no images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        folder = Path(root)
        if not folder.is_dir():
            raise FileMissing("there is no such folder", advice="Check the path.", path=root)
        self.transform = transform
        self.classes = tuple(classes or sorted(_folders(folder), key=_natural))
        if not self.classes:
            raise WrongArgument(
                f"{os.fspath(root)}: there is no folder in it",
                advice="Put the images of each class into a folder of its own.",
            )
        self.samples = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in _images(folder / name)
        ]
        if not self.samples:
            raise WrongArgument(
                f"{os.fspath(root)}: its folders hold no images",
                advice=f"Files are recognised by their suffix: {', '.join(sorted(SUFFIXES))}.",
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        with Image.open(path) as image:
            picture = image.convert("RGB")
        return (picture if self.transform is None else self.transform(picture)), label


def _folders(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != "."]


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts "2" before "10"."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileMissing("there is no folder of this class", path=folder)
    found = (item for item in folder.iterdir() if item.suffix.lower() in SUFFIXES)
    return sorted(found, key=lambda item: _natural(item.name))


def image_transform(
    size: int,
    *,
    augment: bool = False,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Callable[[Image.Image], torch.Tensor]:
    """Return a transform from an image to a normalised float tensor `[3, size, size]`.

    Args:
        size: height and width in pixels.
        augment: also shift, turn and scale at random. Not mirrored, since digits and letters
            change their meaning by it.
        mean: subtracted per channel, of values in [0, 1]; by default ImageNet's.
        std: divided by per channel.
    """
    steps: list[Any] = [v2.ToImage(), v2.Resize((size, size), antialias=True)]
    if augment:
        steps.append(v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1)))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    transform: Callable[[Image.Image], torch.Tensor] = v2.Compose(steps)
    return transform
