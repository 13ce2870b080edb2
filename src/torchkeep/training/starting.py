"""A network to start from: by its name, with weights of its library, of a file, or with none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.loading import ClassNames, load_into, plan
from torchkeep.networks import build, is_of_library, recognised
from torchkeep.training.classifier import (
    Card,
    build_network,
    build_stand_in,
    check_card,
    misfit,
    network_of,
    read_card,
    structure_of,
)
from torchkeep.training.data.preprocessing import Preprocessing
from torchkeep.training.pretrained import pretrained, usual_preprocessing
from torchkeep.training.pruning import SlimStructure
from torchkeep.training.surgery import head_names, replace_head, replace_input

NO_WEIGHTS = "none"
LIBRARY_WEIGHTS = "default"


@dataclass(frozen=True, slots=True)
class Start:
    """A network for a task, and where its values come from."""

    model: nn.Module
    """The network, with as many outputs as there are classes."""
    arch: str
    """Its name, as `torchkeep.networks.build` takes it."""
    weights: str
    """Where its values come from, in words."""
    head: tuple[str, ...]
    """The names of its last layers."""
    has_new_head: bool
    """Whether these have fresh values."""
    preprocessing: Preprocessing | None
    """What the weights expect of images; None if nothing tells."""
    structure: SlimStructure | None = None
    """How it differs from the network of that name, if it was slimmed."""
    input_channels: int | None = None
    """The channels of its input, if they were changed; None for the network's own."""
    new_classes: tuple[str, ...] = ()
    """The classes whose outputs have fresh values, where those of others are the file's."""


def start(
    arch: str | None,
    weights: str | os.PathLike[str],
    classes: Sequence[str],
    input_channels: int | None = None,
) -> Start:
    """Return a network for these classes.

    Args:
        arch: the network's name: `resnet18`, `torchvision/resnet18`, `timm/vit_tiny_patch16_224`,
            `module:callable`. None for the one that the file's weights tell.
        weights: `default` for the library's pretrained weights, `none` for fresh values, or a file
            of any kind that `load_into` takes.
        classes: the class names by label. A file that says what its outputs stand for gives those
            of the same name; the others are fresh.
        input_channels: the channels of the images; by default what the weights expect. Weights for
            others are adapted: see `torchkeep.training.surgery.replace_input`.

    Raises:
        WrongArgument: there is no such network, no such weights, nothing tells which network, or
            its input can't be changed.
        FileProblem: the file is missing, damaged or of no readable kind.
        LoadMismatch: the file is of another network.
        MissingExtra: the library is not installed.
    """
    name = os.fspath(weights)
    if name == NO_WEIGHTS:
        begun = _fresh(_required(arch), classes)
    elif name == LIBRARY_WEIGHTS:
        begun = _pretrained(_required(arch), classes)
    else:
        begun = _of_file(arch, Path(name), classes, input_channels)
    if input_channels is None:
        return begun
    replace_input(begun.model, input_channels, is_adapted=name != NO_WEIGHTS)
    return replace(begun, input_channels=input_channels)


def _required(arch: str | None) -> str:
    if arch is None:
        raise WrongArgument(
            "nothing tells which network it is to be",
            advice="Name it with --arch, such as resnet18, or give a file with --weights.",
        )
    return arch


def _with_head(model: nn.Module, num_classes: int) -> tuple[str, ...]:
    replace_head(model, num_classes)
    return head_names(model)


def _fresh(arch: str, classes: Sequence[str]) -> Start:
    model = build(arch)
    head = _with_head(model, len(classes))
    return Start(model, arch, "none", head, has_new_head=True, preprocessing=None)


def _pretrained(arch: str, classes: Sequence[str]) -> Start:
    found = pretrained(arch)
    head = _with_head(found.model, len(classes))
    return Start(
        found.model,
        found.arch,
        found.weights,
        head,
        has_new_head=True,
        preprocessing=found.preprocessing,
    )


_ALLOWED = ("cast",)
"""Half precision is enough to start from; what is trained has the network's own."""


def _of_file(
    arch: str | None, path: Path, classes: Sequence[str], input_channels: int | None
) -> Start:
    card = read_card(path)
    structure = structure_of(path) if card is None else card.structure
    name = arch or _named(card, structure, path) or recognised(path)[0]
    if card is not None:
        check_card(card, path, name, allow=_ALLOWED)
    # Without memory first: only a file that has the tensors may cause that any are made.
    channels = card.input_channels if card else None
    stand_in = build_stand_in(name, structure, channels)
    head = _with_head(stand_in, len(classes))
    theirs = card.classes if card else ()
    shared = set(theirs) & set(classes)
    adapt: dict[str, str | Sequence[str]] = {}
    if shared and tuple(theirs) != tuple(classes):
        adapt = {layer: ["classes", "skip"] for layer in head}
    elif not shared:
        adapt = dict.fromkeys(head, "skip")
    names = ClassNames(file=tuple(theirs), model=tuple(classes)) if shared else None
    steps = plan(stand_in, path, adapt=adapt, allow=_ALLOWED, classes=names)
    if card is None and input_channels and not steps.is_allowed:
        # The file may be for so many channels already.
        replace_input(stand_in, channels := input_channels)
        steps = plan(stand_in, path, adapt=adapt, allow=_ALLOWED, classes=names)
    if not steps.is_allowed:
        raise misfit(steps, path, name)
    model = build_network(name, structure, channels)
    _with_head(model, len(classes))
    load_into(model, path, adapt=adapt, allow=_ALLOWED, classes=names, replay=False)
    recipe = card.preprocessing if card else usual_preprocessing(name)
    new = tuple(each for each in classes if each not in shared) if shared else ()
    return Start(model, name, str(path), head, not shared, recipe, structure, channels, new)


def _named(card: Card | None, structure: SlimStructure | None, path: Path) -> str | None:
    """Return the network that a file of ours names, unless that is code."""
    if card is not None:
        return network_of(card, path)
    return structure.network if structure and is_of_library(structure.network) else None
