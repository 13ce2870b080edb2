"""A recipe from an image to a network's input, carried out without PyTorch.

`training.data.transforms` does the same with torchvision, to the bit: both have Pillow scale, since
no two libraries scale images quite alike. Whoever deploys a file needs these forty lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def prepared(picture: Image.Image, recipe: Mapping[str, Any]) -> Any:
    """Return an array `[channels, height, width]` of an image: float32, normalised.

    Args:
        picture: in RGB, or grey.
        recipe: as `Preprocessing.to_json` gives it. With `pixels` in it, the network normalises
            by itself, and the array is of uint8.
    """
    if len(recipe["mean"]) == 1:
        picture = picture.convert("L")
    elif picture.mode != "RGB":
        picture = picture.convert("RGB")
    height, width, how = recipe["height"], recipe["width"], _RESAMPLING[recipe["interpolation"]]
    if recipe["resize"] is None:
        picture = picture.resize((width, height), how)
    else:
        picture = _middle(_shorter_side(picture, recipe["resize"], how), height, width)
    values = np.asarray(picture)
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if recipe.get("pixels"):
        return np.ascontiguousarray(values)
    values = values.astype(np.float32) * np.float32(1 / 255)
    mean, std = (np.array(recipe[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return (values - mean) / std


def _shorter_side(picture: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    width, height = picture.size
    if width <= height:
        return picture.resize((side, int(side * height / width)), how)
    return picture.resize((int(side * width / height), side), how)


def _middle(picture: Image.Image, height: int, width: int) -> Image.Image:
    left, top = _begin(picture.width, width), _begin(picture.height, height)
    return picture.crop((left, top, left + width, top + height))


def _begin(side: int, wanted: int) -> int:
    """Return where the middle begins; where an image is too small, how much black is before it."""
    return round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)
