"""Slimmed networks as files: plain weights, with the widths in the metadata.

Everybody else reads an ordinary file of weights. Torch-Pruning is not needed to load one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torchkeep.errors import LoadMismatch, WrongArgument
from torchkeep.formats import describe
from torchkeep.formats.own.metadata import SLIMMED
from torchkeep.loading import LoadReport, load_into, plan
from torchkeep.networks import build, is_of_library
from torchkeep.saving import SaveReport, save
from torchkeep.training.pruning.structure import SlimStructure, restructure
from torchkeep.wording import printable


def save_slim(
    model: nn.Module,
    path: str | os.PathLike[str],
    structure: SlimStructure,
    *,
    network: str | None = None,
    num_classes: int | None = None,
    input_channels: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> SaveReport:
    """Save a slimmed network's weights with its structure, as `torchkeep.save` does.

    Args:
        model: the slimmed network.
        path: the file; its suffix chooses the format.
        structure: what `slim` or `describe_structure` gave.
        network: the name by which `networks.build` makes the network as it was before, so that
            `load_slim` needs nothing but the file; by default the structure's.
        num_classes: what `build` needs for it; by default the structure's.
        input_channels: what `build` needs for it; by default the structure's.
        metadata: what else is to be kept with it.
        **options: as for `torchkeep.save`: `samples`, `overwrite`, ...

    Raises:
        SaveRefused: as for `torchkeep.save`.
        WrongArgument: the metadata has the key that the structure is kept under.
    """
    if SLIMMED in (metadata or {}):
        raise WrongArgument(f"the metadata {SLIMMED!r} is the structure's", advice="Rename yours.")
    structure = replace(
        structure,
        network=structure.network if network is None else network,
        num_classes=structure.num_classes if num_classes is None else num_classes,
        input_channels=structure.input_channels if input_channels is None else input_channels,
    )
    return save(model, path, metadata={**(metadata or {}), SLIMMED: structure.to_text()}, **options)


def read_structure(path: str | os.PathLike[str]) -> SlimStructure:
    """Return the structure that a file of a slimmed network says it has; no weights are read.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind.
        WrongArgument: it says nothing of the kind, or what it says is none.
    """
    structure = find_structure(path)
    if structure is None:
        raise WrongArgument(
            f"{printable(os.fspath(path))} does not say that its network was slimmed",
            advice="`save_slim` writes that; for any other file there is torchkeep.load_into.",
        )
    return structure


def find_structure(path: str | os.PathLike[str]) -> SlimStructure | None:
    """Return what `read_structure` does; None if the file does not say that it was slimmed."""
    text = describe(path).metadata.get(SLIMMED)
    return None if text is None else SlimStructure.from_json(text)


def build_slim(network: str, structure: SlimStructure, device: str = "cpu") -> nn.Module:
    """Return a network by its name in the widths of a slimmed one; load its values afterwards.

    Raises:
        WrongArgument: there is no such network, or the structure does not fit it.
    """
    numbers = {
        "num_classes": structure.num_classes,
        "input_channels": structure.input_channels,
    }
    with torch.random.fork_rng([]):  # its first values are drawn, and overwritten
        model = build(network, device=device, **numbers)
    restructure(model, structure)
    return model


def load_slim(
    path: str | os.PathLike[str], *, network: str | None = None, **options: Any
) -> nn.Module:
    """Return the slimmed network in a file, on the CPU, each tensor compared with the file's.

    A file may name networks of torchvision and timm. Any other name, and one with arguments, has to
    come from the caller, since to make it runs what it names.

    Args:
        path: the file, as `save_slim` wrote it.
        network: the name of the network as it was before; by default the file's.
        **options: as for `torchkeep.load_into`.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind.
        LoadMismatch: the weights are not of this network, slimmed so.
        WrongArgument: the structure does not fit the network, or the file names none.
        ProofFailed: a tensor differs from the file's afterwards.
    """
    structure = read_structure(path)
    name = _network_of(structure, path) if network is None else network
    # Tried without memory first: only a file that has the tensors may cause that any are made.
    _refuse_misfit(build_slim(name, structure, "meta"), path, options)
    model = build_slim(name, structure)
    load_into(model, path, **options)
    return model


def load_slim_into(model: nn.Module, path: str | os.PathLike[str], **options: Any) -> LoadReport:
    """Give a network that you built the structure and the weights of a slimmed one's file.

    Args:
        model: the network as it was before it was slimmed. It is changed in place.
        path: the file, as `save_slim` wrote it.
        **options: as for `torchkeep.load_into`.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind.
        LoadMismatch: the weights are not of this network, slimmed so. It is unchanged.
        WrongArgument: the structure does not fit the network. It is unchanged.
        ProofFailed: a tensor differs from the file's afterwards.
    """
    structure = read_structure(path)
    trial = copy.deepcopy(model).to("meta")
    restructure(trial, structure)
    _refuse_misfit(trial, path, options)
    restructure(model, structure)
    return load_into(model, path, **options)


_PLANNED = ("select", "rename", "adapt", "allow", "classes", "min_coverage", "limits")
"""The options of a load that decide what fits."""


def _refuse_misfit(
    model: nn.Module, path: str | os.PathLike[str], options: Mapping[str, Any]
) -> None:
    steps = plan(model, path, **{key: options[key] for key in _PLANNED if key in options})
    if not steps.is_allowed:
        raise LoadMismatch(
            f"{printable(os.fspath(path))}: its weights are not those of the slimmed network that "
            f"it describes: {steps}",
            missing=steps.missing,
            unexpected=steps.unexpected,
            mismatched=tuple(item.target for item in steps.mismatched),
        )


def _network_of(structure: SlimStructure, path: str | os.PathLike[str]) -> str:
    if is_of_library(structure.network):
        return structure.network
    named = printable(structure.network) or "no network"
    raise WrongArgument(
        f"{printable(os.fspath(path))} names {named}, and not one of torchvision or timm",
        advice="Give network=..., as torchkeep.networks.build takes it, or use load_slim_into.",
    )
