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

from PIL import Image, ImageOps
from torch.utils.data import Dataset

from torchkeep.errors import DamagedFile, FileMissing, WrongArgument
from torchkeep.writing.safetensors import is_utf8

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What Pillow may take a file for: it goes by the content, and starts programs for some formats."""

_THINNEST = 100
"""An image that is so many times as long as wide would be huge once its short side is scaled."""


class ImageFolder(Dataset[tuple[Any, int]]):
    """The images of `root/<class>/**` with their labels.

    Args:
        root: the folder of folders.
        transform: applied to each `PIL.Image` (RGB); see `torchkeep.training.data.transform_of`.
        classes: the class names; a label is a place in it. Folders that are not named are left
            out. By default every folder, numbers in numeric order.

    Attributes:
        classes: the class names by label.
        samples: `(file, label)` of each image, sorted.

    Raises:
        FileMissing: the folder, or one of the classes in it, is missing.
        WrongArgument: there are no classes, or no images.
        DamagedFile: by the item itself: the file can't be read as an image.
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
        for name in self.classes:
            if not is_utf8(name):
                raise WrongArgument(
                    f"{os.fspath(root)}: the folder {name!r} has a name that is no text",
                    advice="Rename it: the model's file has the names of its classes.",
                )
        if not self.samples:
            raise WrongArgument(
                f"{os.fspath(root)}: its folders hold no images",
                advice=f"Files are recognised by their suffix: {', '.join(sorted(SUFFIXES))}.",
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        picture = read_image(path)
        return (picture if self.transform is None else self.transform(picture)), label


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return an image in RGB, turned upright as its camera says, whatever its mode is.

    Raises:
        FileMissing: there is no such file.
        DamagedFile: it can't be read as an image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return as_rgb(image)
    except FileNotFoundError:
        raise FileMissing("there is no such file", advice="Check the path.", path=path) from None
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise _damaged(path, error) from None


def _damaged(path: str | os.PathLike[str], error: BaseException) -> DamagedFile:
    reason = str(error).replace(repr(os.fspath(path)), "it") or type(error).__name__
    return DamagedFile(
        f"it can't be read as an image ({reason})", advice="Remove it, or copy it again.", path=path
    )


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, read whole and upright.

    16 bits per pixel are scaled, and what is transparent is white. The image may be the same one.
    """
    if max(image.size) > _THINNEST * max(min(image.size), 1):
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _folders(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != "."]


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a sort key that puts "2" before "10"; no two names have the same."""
    return [*((text, int(part or -1)) for text, part in re.findall(r"(\D*)(\d*)", name)), (name, 0)]


def _images(folder: Path) -> list[Path]:
    """Return the images of a class, those of folders below it too."""
    if not folder.is_dir():
        raise FileMissing("there is no folder of this class", path=folder)
    found = (
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    shown = (path for path in found if not any(part[0] == "." for part in path.parts))
    return [folder / path for path in sorted(shown, key=lambda item: _natural(str(item)))]
