"""Images in folders, one folder per class.

A label is a place in a list of class names that is kept with the model, never the position of a
folder in whatever happens to be on the disk: with one more folder, sorted positions move and every
label after it means something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from torchkeep.errors import DamagedFile, FileMissing, FileUnreadable, WrongArgument
from torchkeep.training.data.images import PERMISSIONS, read_image
from torchkeep.wording import counted, printable, shortened
from torchkeep.writing.safetensors import is_utf8

SUFFIXES = frozenset(".png .jpg .jpeg .jfif .bmp .webp .tif .tiff .gif .ppm .pgm .pbm .pnm".split())

_NO_CLASSES = frozenset({"__MACOSX", "__pycache__", "@eaDir", "lost+found"})
"""Folders that programs make beside the classes, as those that begin with a point."""


class ImageFolder(Dataset[tuple[Any, int]]):
    """The images of `root/<class>/**` with their labels.

    Args:
        root: the folder of folders.
        transform: applied to each `PIL.Image` (RGB); see `torchkeep.training.data.transform_of`.
        classes: the class names; a label is a place in it. Folders that are not named are left
            out. By default every folder, numbers in numeric order; not those that begin with a
            point, and what systems make, such as `__MACOSX`.
        skip_empty: leave out folders without a single image, instead of refusing them, where
            `classes` does not name them.

    Attributes:
        classes: the class names by label.
        samples: `(file, label)` of each image, sorted. Whatever has an image's suffix is one, be it
            a link to nothing: what can't be read is not passed over in silence.

    Raises:
        FileMissing: the folder, or one of the classes in it, is missing.
        FileUnreadable: a folder may not be read.
        WrongArgument: there are no classes, one is without images, or its name is no text.
        FileProblem: by the item itself: see `read_image`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
        skip_empty: bool = False,
    ) -> None:
        folder = Path(root)
        self.transform = transform
        names = tuple(classes or sorted(subfolders(folder), key=_natural))
        if not names:
            raise WrongArgument(
                f"{printable(str(folder))}: there is no folder in it",
                advice="Put the images of each class into a folder of its own.",
            )
        images = {name: _images(folder / name) for name in names}
        if not classes:
            images = _of_classes(folder, images, skip_empty=skip_empty)
        _check_images(folder, images)
        self.classes = tuple(images)
        self.samples = [
            (path, label) for label, paths in enumerate(images.values()) for path in paths
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        picture = _read_again(path)
        return (picture if self.transform is None else self.transform(picture)), label


def _read_again(path: Path) -> Image.Image:
    """Return the image of a data set, which may have gone since its folder was looked through."""
    try:
        return read_image(path)
    except FileMissing:
        if path.is_symlink():
            raise
        raise FileMissing(
            "the image has gone since the folder was looked through",
            advice="Put it back: a run goes on after its last checkpoint then.",
            path=path,
        ) from None
    except DamagedFile as error:
        error.advice = (
            "Copy it again, or remove it; torchkeep train --skip-broken leaves out what is broken."
        )
        raise


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without those that nobody has made.

    Raises:
        FileMissing: there is no such folder.
        FileUnreadable: it may not be read.
    """
    if not folder.is_dir():
        raise FileMissing("there is no such folder", advice="Check the path.", path=folder)
    with _telling_of_folders(folder):
        return [
            item.name
            for item in folder.iterdir()
            if item.is_dir() and item.name[0] != "." and item.name not in _NO_CLASSES
        ]


@contextmanager
def _telling_of_folders(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileUnreadable(
            f"the folder can't be read ({error.strerror})",
            advice=PERMISSIONS,
            path=error.filename or folder,
        ) from None


def _of_classes(
    folder: Path, images: dict[str, list[Path]], *, skip_empty: bool
) -> dict[str, list[Path]]:
    """Return the images of the folders that have some."""
    full = {name: paths for name, paths in images.items() if paths}
    if full and len(full) < len(images) and not skip_empty:
        empty = [name for name, paths in images.items() if not paths]
        raise WrongArgument(
            f"{printable(str(folder))}: {counted(len(empty), 'folder')} of {len(images):,} "
            f"{'holds' if len(empty) == 1 else 'hold'} no images: "
            f"{', '.join(shortened(name) for name in empty[:5])}"
            f"{', ...' if len(empty) > 5 else ''}",
            advice=f"Add images to it, or remove it. {_SUFFIXES_TOLD}",
        )
    return full


_SUFFIXES_TOLD = f"Images are recognised by their suffix: {', '.join(sorted(SUFFIXES))}."


def _check_images(folder: Path, images: dict[str, list[Path]]) -> None:
    for name in images:
        if not is_utf8(name):
            raise WrongArgument(
                f"{printable(str(folder))}: the folder {name!r} has a name that is no text",
                advice="Rename it: the model's file has the names of its classes.",
            )
    if not any(images.values()):
        raise WrongArgument(
            f"{printable(str(folder))}: its folders hold no images", advice=_SUFFIXES_TOLD
        )


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a sort key that puts "2" before "10"; no two names have the same."""
    return [*((text, int(part or -1)) for text, part in re.findall(r"(\D*)(\d*)", name)), (name, 0)]


def _images(folder: Path) -> list[Path]:
    """Return the images of a class, those of folders below it too.

    Raises:
        FileMissing: there is no such folder.
        FileUnreadable: it, or one below it, may not be read.
    """
    if not folder.is_dir():
        raise FileMissing("there is no folder of this class", path=folder)
    with _telling_of_folders(folder):
        return sorted(_below(folder), key=lambda path: _natural(str(path.relative_to(folder))))


def _below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    place = folder.resolve()
    if place in above:
        return  # a link leads back
    with os.scandir(folder) as items:
        for item in items:
            if item.name[0] == "." or item.name in _NO_CLASSES:
                continue
            is_image = Path(item.name).suffix.lower() in SUFFIXES
            if item.is_dir(follow_symlinks=False) or (item.is_symlink() and Path(item).is_dir()):
                found = list(_below(folder / item.name, (*above, place)))
                # Nobody means a folder by such a name, unless there is something in it.
                yield from found or ([folder / item.name] if is_image else [])
            elif is_image:
                yield folder / item.name
