"""What a classifier says of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from torchkeep.errors import WrongArgument
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
) -> Iterator[Prediction]:
    """Yield what a classifier says of each image, prepared as its card says.

    Args:
        model: the network, on any device; see `load_classifier`.
        card: what it is.
        images: files.
        top: how many classes to tell.
        batch_size: how many images to look at in one go.

    Raises:
        WrongArgument: `top` or `batch_size` is less than 1.
        FileProblem: an image is missing or can't be read: see `read_image`.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise WrongArgument(f"{name} is {value}, and has to be at least 1")
    transform = transform_of(card.preprocessing)
    device = next(model.parameters()).device
    for paths in _batches([Path(image) for image in images], batch_size):
        inputs = torch.stack([transform(read_image(path)) for path in paths])
        with evaluating(model):
            shares = model(inputs.to(device)).float().softmax(dim=1).cpu()
        values, labels = shares.topk(min(top, len(card.classes)), dim=1)
        for path, row, places in zip(paths, values.tolist(), labels.tolist(), strict=True):
            yield Prediction(path, tuple(card.classes[at] for at in places), tuple(row))


def _batches(paths: Sequence[Path], size: int) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, size)):
        yield batch
