"""A classifier in a file of its own: weights, and all that is needed to use them.

The file's metadata has `arch` (the network's name), `classes` (what its outputs stand for),
`preprocessing` (the recipe from an image to its input), `input_channels` if these were changed, and
`slimmed` if it was (see `pruning`). To everyone else it is a plain state dict.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.formats import describe
from torchkeep.formats.plain_json import parse_json
from torchkeep.loading import load_into
from torchkeep.networks import build, is_of_library
from torchkeep.saving import SaveReport, save
from torchkeep.training.data.preprocessing import MOST_CHANNELS, Preprocessing, from_json
from torchkeep.training.pruning import SLIMMED, SlimStructure, build_slim, find_structure
from torchkeep.training.surgery import replace_head, replace_input
from torchkeep.wording import printable


@dataclass(frozen=True, slots=True)
class Card:
    """What a classifier is, besides its weights."""

    arch: str
    """The network's name, as `torchkeep.networks.build` takes it."""
    classes: tuple[str, ...]
    """What its outputs stand for."""
    preprocessing: Preprocessing
    """What an image goes through first."""
    structure: SlimStructure | None = None
    """How it differs from the network of that name, if it was slimmed."""
    input_channels: int | None = None
    """The channels of its input, if they were changed; None for the network's own."""


def save_classifier(
    model: nn.Module,
    card: Card,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    metric: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> SaveReport:
    """Save a classifier so that `load_classifier` needs nothing but the file.

    Args:
        model: the network.
        card: what it is.
        path: the file.
        metadata: see `torchkeep.save`.
        metric: likewise.
        overwrite: likewise.

    Raises:
        SaveRefused: see `torchkeep.save`.
    """
    told = {
        **(metadata or {}),
        "arch": card.arch,
        "classes": list(card.classes),
        "preprocessing": card.preprocessing.to_json(),
    }
    if card.structure is not None:
        told[SLIMMED] = card.structure.to_text()
    if card.input_channels is not None:
        told["input_channels"] = card.input_channels
    return save(model, path, metadata=told, metric=metric, overwrite=overwrite)


def read_card(path: str | os.PathLike[str]) -> Card | None:
    """Return what a file says that its classifier is; None if it does not say all of it.

    Raises:
        FileProblem: it can't be read, or what it says is damaged.
    """
    texts = describe(path).metadata
    if not {"arch", "classes", "preprocessing"} <= texts.keys():
        return None
    try:
        classes = parse_json(texts["classes"])
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise DamagedFile("its metadata 'classes' is no list of names")
        recipe = from_json(parse_json(texts["preprocessing"]))
        channels = parse_json(texts.get("input_channels", "null"))
        if channels is not None and (
            type(channels) is not int or not 1 <= channels <= MOST_CHANNELS
        ):
            raise DamagedFile("its metadata 'input_channels' is no number of channels")
    except DamagedFile as error:
        raise DamagedFile(error.problem, advice=error.advice, path=path) from None
    return Card(texts["arch"], tuple(classes), recipe, find_structure(path), channels)


def load_classifier(
    path: str | os.PathLike[str], *, arch: str | None = None
) -> tuple[nn.Module, Card]:
    """Return the classifier of a file, in evaluation mode, and what it is.

    Args:
        path: the file.
        arch: the network's name, if it is code of your own. A file may name networks of torchvision
            and timm alone, since to make any other one runs what it names.

    Raises:
        WrongArgument: the file does not say what its classifier is, or names code.
        FileProblem: it can't be read, or is damaged.
        LoadMismatch: its weights are not of the network that it names.
    """
    card = read_card(path)
    if card is None:
        raise WrongArgument(
            f"{Path(path)}: it does not say its network, its classes and its preprocessing",
            advice="torchkeep train writes such files; load others with torchkeep.load_into.",
        )
    model = build_network(network_of(card, path, arch), card.structure, card.input_channels)
    replace_head(model, len(card.classes))
    load_into(model, path)
    return model.eval(), card


def network_of(card: Card, path: str | os.PathLike[str], arch: str | None = None) -> str:
    """Return the name of a file's network: the one given, or the file's if that runs no code.

    Raises:
        WrongArgument: it would.
    """
    name = card.arch if arch is None else arch
    if arch is None and not is_of_library(name):
        raise WrongArgument(
            f"{printable(str(path))}: its network is {printable(name)}, which is no network of "
            "torchvision or timm but code",
            advice="If you trust it, name it yourself, with --arch.",
        )
    return name


def build_network(
    name: str, structure: SlimStructure | None, input_channels: int | None = None
) -> nn.Module:
    """Return a network with fresh values, in the widths of a slimmed one if it is one.

    Args:
        name: as `torchkeep.networks.build` takes it.
        structure: of a slimmed one.
        input_channels: those of its input, if they are not the network's own.
    """
    model = build(name) if structure is None else build_slim(name, structure)
    if input_channels is not None:
        replace_input(model, input_channels)
    return model
