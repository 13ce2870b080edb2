"""Transforms of images: a recipe carried out, with or without augmentation, and mixed batches.

What is random draws from torch's global generator. Within `Checkpointer.batches` that is seeded
for each sample anew, from the run's seed, the epoch and the sample: a sample is augmented alike
with any number of workers, and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from torchkeep.errors import WrongArgument
from torchkeep.training.data.preprocessing import Preprocessing

Transform = Callable[[Any], torch.Tensor]
"""From a `PIL.Image` to `[channels, height, width]`."""

Collate = Callable[[list[tuple[torch.Tensor, int]]], Any]
"""From samples to a batch: inputs `[n, ...]` and labels, `[n]` or `[n, classes]` if mixed."""


def transform_of(recipe: Preprocessing, augment: str = "none") -> Transform:
    """Return a transform that prepares an image as the recipe says.

    Images are grey or in colours. Given one, the transform of a recipe for another number of
    channels raises a WrongArgument.

    Args:
        recipe: how.
        augment: what is done at random: one of `POLICIES`.

    Raises:
        WrongArgument: there is no such policy.
    """
    if recipe.num_channels not in (1, 3):
        return partial(refuse_picture, recipe.num_channels)
    # Pillow scales the image, as it did for those whose weights these are: not quite as torch does.
    steps: list[Any] = [v2.Grayscale()] if recipe.num_channels == 1 else []
    steps += [*_policy(augment)(recipe), v2.ToImage(), v2.ToPureTensor()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([*recipe.mean], [*recipe.std])]
    made: Transform = v2.Compose(steps)
    return made


def refuse_picture(num_channels: int, picture: Any = None) -> torch.Tensor:
    """Say that an image has not so many channels.

    Raises:
        WrongArgument: always.
    """
    del picture
    raise WrongArgument(
        f"images have 1 channel or 3, and the network takes {num_channels}",
        advice="Give it tensors, from a module:function of your own.",
    )


def _plain(recipe: Preprocessing) -> list[Any]:
    size, how = [recipe.height, recipe.width], v2.InterpolationMode(recipe.interpolation)
    if recipe.resize is None:
        return [v2.Resize(size, how, antialias=True)]
    return [v2.Resize([recipe.resize], how, antialias=True), v2.CenterCrop(size)]


def _light(recipe: Preprocessing) -> list[Any]:
    return [*_plain(recipe), _moved]


def _moved(picture: Image.Image) -> Image.Image:
    """Return a picture shifted and scaled by up to a tenth, and turned by up to 10 degrees."""
    # What comes in from outside goes on with the colours of the edge: a wedge of one fixed colour,
    # the mean or black, is something to see, and on paper or sky it is the strongest edge there is.
    # Dark digits on white: 96.4% right with the edge's, 94.7% with the mean, 93.8% with black.
    width, height = picture.size
    angle, scale, right, down = (torch.rand(4) * 2 - 1).tolist()
    margin = math.ceil(_MARGIN * max(width, height))
    turn, zoom = math.radians(10 * angle), 1 + 0.1 * scale
    a, b = math.cos(turn) / zoom, math.sin(turn) / zoom
    # From a place in the result to the one in the padded picture that its colour is of.
    x, y = width * (0.5 + 0.1 * right), height * (0.5 + 0.1 * down)
    across = (a, b, margin + width / 2 - a * x - b * y)
    along = (-b, a, margin + height / 2 + b * x - a * y)
    padded: Image.Image = functional.pad(picture, [margin], padding_mode="edge")
    # Not v2.RandomAffine, which would compute the margins as well.
    return padded.transform(
        picture.size, Image.Transform.AFFINE, (*across, *along), Image.Resampling.BILINEAR
    )


_MARGIN = 0.28
"""How far outside a square picture is looked at, of its side, if it is shifted and made smaller by
a tenth, and turned by 10 degrees: (0.5 + 0.1) (cos 10 + sin 10) / 0.9 - 0.5."""


def _standard(recipe: Preprocessing) -> list[Any]:
    size, how = [recipe.height, recipe.width], v2.InterpolationMode(recipe.interpolation)
    crop = v2.RandomResizedCrop(size, scale=(0.35, 1.0), interpolation=how, antialias=True)
    return [crop, v2.RandomHorizontalFlip()]


def _randaugment(recipe: Preprocessing) -> list[Any]:
    # Its turns and shears are too large to go on with an edge; timm fills with the mean as well.
    return [*_standard(recipe), v2.RandAugment(fill=[round(255 * x) for x in recipe.mean])]


POLICIES: dict[str, Callable[[Preprocessing], list[Any]]] = {
    "none": _plain,
    "light": _light,
    "standard": _standard,
    "randaugment": _randaugment,
}
"""Augmentation by name: nothing; small shifts, turns and scales, for what must not be mirrored
(digits, letters); random crops, mirrored at random; the same with RandAugment (Cubuk 2019)."""


def _policy(name: str) -> Callable[[Preprocessing], list[Any]]:
    if name not in POLICIES:
        raise WrongArgument(
            f"there is no augmentation {name!r}", advice=f"Choose one of {', '.join(POLICIES)}."
        )
    return POLICIES[name]


MIXES: dict[str, Callable[..., Any]] = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
"""How batches are mixed: Zhang 2017, Yun 2019."""


class Mixed:
    """Makes batches whose samples are mixed by pairs, with labels `[n, classes]`.

    Args:
        mix: one of `MIXES`.
        num_classes: how many classes there are.
        alpha: how much is mixed: of the Beta distribution that the shares are drawn from.

    Raises:
        WrongArgument: there is no such way to mix.
    """

    def __init__(self, mix: str, num_classes: int, *, alpha: float = 0.2) -> None:
        if mix not in MIXES:
            raise WrongArgument(
                f"batches can't be mixed by {mix!r}", advice=f"Choose one of {', '.join(MIXES)}."
            )
        self._mix = MIXES[mix](num_classes=num_classes, alpha=alpha)

    def __call__(self, samples: list[tuple[torch.Tensor, int]]) -> Any:
        """Return the batch of some samples."""
        inputs, labels = default_collate(samples)
        return list(self._mix(inputs, labels))
