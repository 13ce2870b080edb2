"""What an image goes through before a network sees it, as data that is kept with the model.

A network that gets its images prepared in another way than in training still answers, and is wrong
more often. So the recipe comes from the pretrained weights, and goes into the model's file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.wording import shortened

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LARGEST_SIDE = 2048
"""Twice what the largest networks of torchvision and timm take. A file has its recipe from anybody,
and a batch of 32 such images takes 1.6 GB."""

_LARGEST_RESIZE = 2 * _LARGEST_SIDE

_LARGEST_NUMBER = 1e6
"""Of what images are normalised by, and its inverse the smallest: float32 has these with room."""

MOST_CHANNELS = 1 << 12
"""Of an input: satellites have hundreds."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A recipe from an image to a normalised float tensor `[channels, height, width]`.

    Raises:
        WrongArgument: a value is out of range.
    """

    height: int = 224
    """Height of what the network sees, in pixels."""
    width: int = 224
    """Its width, in pixels."""
    resize: int | None = 256
    """The shorter side after scaling, in pixels; the middle is cut out of that. None scales the
    image to `height` x `width` whatever its shape is."""
    mean: tuple[float, ...] = _IMAGENET[0]
    """Subtracted per channel, of values in [0, 1]. As many as there are channels: 1 for grey
    images, 3 for colours, any other number where the data are tensors."""
    std: tuple[float, ...] = _IMAGENET[1]
    """Divided by per channel."""
    interpolation: str = "bilinear"
    """One of `INTERPOLATIONS`."""

    def __post_init__(self) -> None:
        sides = (self.height, self.width)
        is_fit = all(_is_side(side, _LARGEST_SIDE) for side in sides)
        if not is_fit or not (self.resize is None or _is_side(self.resize, _LARGEST_RESIZE)):
            shown = [shortened(repr(side), 20) for side in (self.width, self.height, self.resize)]
            raise WrongArgument(
                f"no image is {shown[0]} x {shown[1]} pixels of one scaled to {shown[2]}",
                advice=f"A network sees 1 to {_LARGEST_SIDE} pixels a side, of an image scaled to "
                f"at most {_LARGEST_RESIZE}.",
            )
        if not 1 <= len(self.mean) <= MOST_CHANNELS or len(self.mean) != len(self.std):
            raise WrongArgument(
                f"there are {len(self.mean)} means and {len(self.std)} standard deviations",
                advice="Give one of each for grey images, three for colours.",
            )
        least, most = 1 / _LARGEST_NUMBER, _LARGEST_NUMBER
        means_fit = all(-most <= x <= most for x in self.mean)  # NaN is in no range
        if not means_fit or not all(least <= x <= most for x in self.std):
            raise WrongArgument(f"images can't be normalised by {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise WrongArgument(
                f"there is no interpolation {shortened(repr(self.interpolation))}",
                advice=f"Choose one of {', '.join(INTERPOLATIONS)}.",
            )

    @property
    def num_channels(self) -> int:
        """1 for grey images, 3 for colours, another number for tensors."""
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON has it; `from_json` undoes it."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items()}


def from_json(value: object) -> Preprocessing:
    """Return a recipe that was kept.

    Raises:
        DamagedFile: it is none.
    """
    try:
        if not isinstance(value, Mapping):
            raise TypeError
        numbers = {key: tuple(map(float, value[key])) for key in ("mean", "std")}
        return Preprocessing(**{**value, **numbers})
    except (TypeError, ArithmeticError, ValueError, KeyError, WrongArgument) as error:
        reason = error.problem if isinstance(error, WrongArgument) else "it is no such recipe"
        raise DamagedFile(f"its preprocessing can't be used: {reason}") from None


def for_size(
    size: int, *, mean: Sequence[float] = _IMAGENET[0], std: Sequence[float] = _IMAGENET[1]
) -> Preprocessing:
    """Return the recipe for a network that is trained from scratch: whole images, made square.

    Args:
        size: height and width in pixels.
        mean: see `Preprocessing`.
        std: likewise.
    """
    return Preprocessing(size, size, None, tuple(mean), tuple(std))


def for_channels(recipe: Preprocessing, num_channels: int) -> Preprocessing:
    """Return a recipe for another number of channels, as `surgery.replace_input` adapts weights.

    Grey is normalised by the mean over the colours; more channels take the numbers in turn.
    """
    old = recipe.num_channels
    if num_channels == old:
        return recipe
    turns = [range(old)] if num_channels == 1 else [[at % old] for at in range(num_channels)]
    means, stds = (
        tuple(fmean(row[at] for at in places) for places in turns)
        for row in (recipe.mean, recipe.std)
    )
    return replace(recipe, mean=means, std=stds)


def of_torchvision(weights: Any) -> Preprocessing:
    """Return the recipe of weights of torchvision, such as `ResNet18_Weights.DEFAULT`.

    Those of GoogLeNet and Inception were trained on images from -1 to 1. torchvision has the
    network make such of what its recipe gives (`transform_input`), but not one that is made without
    weights. So here it is the recipe that does it.

    Source: `torchvision/transforms/_presets.py`, `ImageClassification`.
    """
    preset = weights.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    means = tuple(preset.mean), tuple(preset.std)
    if str(weights).startswith(("GoogLeNet_Weights", "Inception_V3_Weights")):
        means = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return Preprocessing(crop, crop, resize, *means, str(preset.interpolation.value))


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Return the recipe of a model of timm, from its `pretrained_cfg`.

    Source: `timm/data/config.py` and `timm/data/transforms_factory.py`: the share `crop_pct` of the
    scaled image is what the network sees.
    """
    _, height, width = config.get("input_size", (3, 224, 224))
    share = config.get("crop_pct") or 0.875
    squeezes = config.get("crop_mode") == "squash"
    interpolation = config.get("interpolation", "bicubic")
    return Preprocessing(
        height,
        width,
        None if squeezes else math.floor(min(height, width) / share),
        tuple(config.get("mean", _IMAGENET[0])),
        tuple(config.get("std", _IMAGENET[1])),
        interpolation if interpolation in INTERPOLATIONS else "bicubic",
    )


def _is_side(value: object, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest
