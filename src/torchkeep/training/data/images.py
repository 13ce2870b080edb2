"""One image file, as a picture: what Pillow reads of it, upright and in RGB."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from torchkeep.errors import DamagedFile, FileMissing, FileUnreadable
from torchkeep.wording import printable, shortened

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What Pillow may take a file for: it goes by the content, and starts programs for some formats."""

_THINNEST = 100
"""An image that is so many times as long as wide would be huge once its short side is scaled."""

PERMISSIONS = "Look at its permissions and those of its folder."
"""Advice about what may not be read."""


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return an image in RGB, turned upright as its camera says, whatever its mode is.

    Raises:
        FileMissing: there is no such file.
        FileUnreadable: it may not be read, or is no file: a folder, a pipe.
        DamagedFile: it can't be read as an image.
    """
    nbytes = file_size(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            return as_rgb(image)
    except FileNotFoundError:
        raise FileMissing("there is no such file", advice="Check the path.", path=path) from None
    except PermissionError:
        raise FileUnreadable("it may not be read", advice=PERMISSIONS, path=path) from None
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}" if nbytes else "it is empty"
        raise DamagedFile(
            f"it can't be read as an image ({printable(reason)})",
            advice="Copy it again, or leave it out.",
            path=path,
        ) from None


def file_size(path: str | os.PathLike[str]) -> int:
    """Return the bytes of what has to be a file. To open a pipe may take for ever.

    Raises:
        FileMissing: there is none.
        FileUnreadable: it may not be looked at, or is no file.
    """
    file = Path(path)
    try:
        status = file.stat()
    except FileNotFoundError:
        if file.is_symlink():
            raise FileMissing(
                f"it is a link to {shortened(str(file.readlink()), 200)}, and nothing is there",
                advice="Put the file there, or remove the link.",
                path=path,
            ) from None
        raise FileMissing("there is no such file", advice="Check the path.", path=path) from None
    except OSError as error:
        raise FileUnreadable(str(error.strerror), advice=PERMISSIONS, path=path) from None
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise FileUnreadable(
                "it is no image, but a folder", advice="Name the images in it.", path=path
            )
        raise FileUnreadable(
            "it is no image, but a pipe, a socket or a device", advice="Leave it out.", path=path
        )
    return status.st_size


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, read whole and upright.

    16 bits per pixel are scaled, so are floats if none is above 1, and what is transparent is
    white. The image may be the same one.
    """
    if max(image.size) > _THINNEST * max(min(image.size), 1):
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode == "F" and image.getextrema()[1] <= 1:  # type: ignore[operator]
        image = image.point(lambda value: value * 255 + 0.5)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
