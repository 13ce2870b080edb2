"""What a classifier says of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from torchkeep.errors import FileProblem, WrongArgument
from torchkeep.modes import evaluating
from torchkeep.training.classifier import Card
from torchkeep.training.data import read_image, transform_of


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a classifier says of one image."""

    path: Path
    """The image."""
    classes: tuple[str, ...]
    """The likeliest classes, the likeliest first."""
    probabilities: tuple[float, ...]
    """How sure it is of each, from 0 to 1."""


def predict(
    model: nn.Module,
    card: Card,
    images: Iterable[str | os.PathLike[str]],
    *,
    top: int = 3,
    batch_size: int = 32,
    failed: Callable[[FileProblem], object] | None = None,
) -> Iterator[Prediction]:
    """Yield what a classifier says of each image, prepared as its card says.

    Args:
        model: the network, on any device; see `load_classifier`.
        card: what it is.
        images: files.
        top: how many classes to tell.
        batch_size: how many images to look at in one go.
        failed: is told of an image that can't be read, which is left out; without it that is an
            error.

    Raises:
        WrongArgument: `top` or `batch_size` is less than 1.
        FileProblem: an image is missing or can't be read: see `read_image`.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise WrongArgument(f"{name} is {value}, and has to be at least 1")
    transform = transform_of(card.preprocessing)
    device = next(model.parameters()).device
    for batch in _batches([Path(image) for image in images], batch_size):
        read = list(_read(batch, failed))
        if not read:
            continue
        inputs = torch.stack([transform(picture) for _, picture in read])
        with evaluating(model):
            shares = model(inputs.to(device)).float().softmax(dim=1).cpu()
        values, labels = shares.topk(min(top, len(card.classes)), dim=1)
        for (path, _), row, places in zip(read, values.tolist(), labels.tolist(), strict=True):
            yield Prediction(path, tuple(card.classes[at] for at in places), tuple(row))


def _read(
    paths: Iterable[Path], failed: Callable[[FileProblem], object] | None
) -> Iterator[tuple[Path, Image.Image]]:
    for path in paths:
        try:
            picture = read_image(path)
        except FileProblem as error:
            if failed is None:
                raise
            failed(error)
        else:
            yield path, picture


def _batches(paths: Sequence[Path], size: int) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, size)):
        yield batch
