"""A classifier in a file of its own: weights, and all that is needed to use them.

The file's metadata has `arch` (the network's name), `classes` (what its outputs stand for),
`preprocessing` (the recipe from an image to its input), `input_channels` if these were changed,
`slimmed` if it was (see `pruning`), and `qat` if it was trained for 8 bits (see `quantizing`). To
everyone else it is a plain state dict.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchkeep.errors import DamagedFile, LoadMismatch, WrongArgument
from torchkeep.formats import describe
from torchkeep.formats.plain_json import parse_json
from torchkeep.loading import LoadPlan, load_into, plan
from torchkeep.matching.explain import summarize, table
from torchkeep.networks import build, is_of_library
from torchkeep.saving import SaveReport, save
from torchkeep.training.data.preprocessing import MOST_CHANNELS, Preprocessing, from_json
from torchkeep.training.pruning import SLIMMED, SlimStructure, build_slim, find_structure
from torchkeep.training.quantizing import Ranges, ranges_from_json, ranges_to_json
from torchkeep.training.surgery import head_names, replace_head, replace_input
from torchkeep.wording import counted, printable, shortened


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
    qat: Ranges | None = None
    """The ranges of its layers' inputs in 8 bits, if it was trained for these: the network itself
    is a plain one, and `torchkeep.training.fake_quantize` has it compute so."""


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
    if card.qat is not None:
        told["qat"] = ranges_to_json(card.qat)
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
        classes = _class_names(parse_json(texts["classes"]))
        recipe = from_json(parse_json(texts["preprocessing"]))
        channels = parse_json(texts.get("input_channels", "null"))
        if channels is not None and (
            type(channels) is not int or not 1 <= channels <= MOST_CHANNELS
        ):
            raise DamagedFile("its metadata 'input_channels' is no number of channels")
        qat = ranges_from_json(parse_json(texts["qat"])) if "qat" in texts else None
    except DamagedFile as error:
        raise DamagedFile(error.problem, advice=error.advice, path=path) from None
    return Card(texts["arch"], classes, recipe, structure_of(path), channels, qat)


def _class_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DamagedFile("its metadata 'classes' is no list of names")
    if not value:
        raise DamagedFile("its metadata 'classes' names no class")
    if len(set(value)) < len(value):
        twice = next(name for name, count in Counter(value).items() if count > 1)
        raise DamagedFile(f"its metadata 'classes' names {shortened(twice)} more than once")
    return tuple(value)


def structure_of(path: str | os.PathLike[str]) -> SlimStructure | None:
    """Return how a file says that its network was slimmed; None if it does not say so.

    Raises:
        FileProblem: it can't be read, or what it says is damaged.
    """
    try:
        return find_structure(path)
    except WrongArgument as error:
        raise DamagedFile(f"its metadata {SLIMMED!r}: {error.problem}", path=path) from None


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
    name = network_of(card, path, arch)
    check_card(card, path, name)
    model = build_network(name, card.structure, card.input_channels)
    replace_head(model, len(card.classes))
    load_into(model, path)
    return model.eval(), card


def check_card(
    card: Card, path: str | os.PathLike[str], name: str, *, allow: Collection[str] = ()
) -> None:
    """Make sure that a file has the tensors of the network that its card tells of.

    No memory is taken for them, so that no small file can have a huge network made.

    Args:
        card: what the file says.
        path: the file.
        name: the network, which the caller may have named.
        allow: see `load_into`.

    Raises:
        DamagedFile: its last layer is for another number of classes than it names.
        LoadMismatch: its weights are not of that network.
        WrongArgument: there is no such network, or it can't be slimmed as the file says.
    """
    model = build_stand_in(name, card.structure, card.input_channels)
    replace_head(model, len(card.classes))
    heads = {f"{name}.{part}" for name in head_names(model) for part in ("weight", "bias")}
    steps = plan(model, path, allow=allow)
    if steps.is_allowed:
        return
    wrong = steps.mismatched
    if wrong and not (steps.missing or steps.unexpected) and heads >= {x.target for x in wrong}:
        raise DamagedFile(
            f"it names {counted(len(card.classes), 'class')}, and {printable(wrong[0].source)} is "
            f"{wrong[0].found}, not {wrong[0].expected}",
            path=path,
        )
    raise misfit(steps, path, name)


def misfit(steps: LoadPlan, path: str | os.PathLike[str], name: str) -> LoadMismatch:
    """Return what says how a file's weights differ from those of a network."""
    return LoadMismatch(
        f"{printable(str(path))}: its weights are not those of {printable(name)}: "
        f"{summarize(steps)}",
        advice=f"{steps.advice} Another network is named by --arch.\n{table(steps)}".lstrip(),
        missing=steps.missing,
        unexpected=steps.unexpected,
        mismatched=tuple(item.target for item in steps.mismatched),
    )


def build_stand_in(
    name: str, structure: SlimStructure | None, input_channels: int | None = None
) -> nn.Module:
    """Return a network without values, on the `meta` device; no random number is drawn.

    One of the libraries takes no memory. The user's own code is made as it is, and emptied: it need
    not know of `meta`, and is no larger than the user wants it.
    """
    with torch.random.fork_rng([]):
        if is_of_library(name):
            return build_network(name, structure, input_channels, "meta")
        return build_network(name, structure, input_channels).to("meta")


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


def unslimmed(card: Card, arch: str | None = None) -> nn.Module:
    """Return the network of a card as it would be if it had not been slimmed, without values."""
    model = build_stand_in(card.arch if arch is None else arch, None, card.input_channels)
    replace_head(model, len(card.classes))
    return model


def build_network(
    name: str,
    structure: SlimStructure | None,
    input_channels: int | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return a network with fresh values, in the widths of a slimmed one if it is one.

    Args:
        name: as `torchkeep.networks.build` takes it.
        structure: of a slimmed one.
        input_channels: those of its input, if they are not the network's own.
        device: where its tensors are.
    """
    if structure is None:  # noqa: SIM108 (one line is too long for it)
        model = build(name, device=device)
    else:
        model = build_slim(name, structure, device)
    if input_channels is not None:
        replace_input(model, input_channels)
    return model
