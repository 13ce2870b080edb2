"""What is exported: a live module, or the network in a file or a run."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchkeep.errors import FileMissing, WrongArgument
from torchkeep.identify import Inspection, inspect
from torchkeep.loading import load_into, load_model
from torchkeep.networks import build, recognised
from torchkeep.outputs import place_of
from torchkeep.saving.modules import unwrapped
from torchkeep.training.classifier import load_classifier, read_card
from torchkeep.training.data import Preprocessing
from torchkeep.training.pretrained import usual_preprocessing
from torchkeep.training.quantizing import Ranges
from torchkeep.training.records.names import BEST_FILE, LAST_FILE, SETTINGS_FILE


@dataclass(frozen=True, slots=True)
class Subject:
    """A network that is to be exported, and what is known of it."""

    model: nn.Module
    """The network, on the CPU."""
    source: str
    """Where it comes from, in words: a file's name, or the class of a live module."""
    arch: str | None = None
    """The network's name, if it has one."""
    classes: tuple[str, ...] = ()
    """What its outputs stand for, if that is known."""
    preprocessing: Preprocessing | None = None
    """What an image goes through first, if it takes images."""
    is_recipe_told: bool = False
    """Whether the preprocessing is the file's own; it is the usual one of the network otherwise."""
    run: Path | None = None
    """The training run that it is of."""
    ranges: Ranges = field(default_factory=dict)
    """What its layers take in 8 bits, if it was trained for them."""
    file: Path | None = None
    """What it was read from."""
    takes_pixels: bool = False
    """Whether it normalises by itself: see `taking_pixels`."""

    def recipe(self) -> dict[str, Any] | None:
        """Return what an image goes through first as JSON has it; None if that is not known."""
        if self.preprocessing is None:
            return None
        pixels = {"pixels": True} if self.takes_pixels else {}
        return self.preprocessing.to_json() | pixels


class FromPixels(nn.Module):
    """A network that normalises its images by itself.

    Attributes:
        network: the network.
        mean: subtracted, `[channels, 1, 1]`.
        std: divided by, `[channels, 1, 1]`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, recipe: Preprocessing) -> None:
        super().__init__()
        self.network = network
        dtype = place_of(network)[1]
        for name in ("mean", "std"):
            values = torch.tensor(getattr(recipe, name), dtype=dtype)[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return what the network makes of images `[n, channels, height, width]` from 0 to 255."""
        return self.network((pixels.to(self.mean.dtype) / 255 - self.mean) / self.std)


def taking_pixels(subject: Subject) -> Subject:
    """Return a network with its normalisation within, so that nobody can forget it, or do it twice.

    Raises:
        WrongArgument: nothing tells how its images are normalised.
    """
    if subject.preprocessing is None:
        raise WrongArgument(
            f"nothing tells how images are normalised for {subject.source}",
            advice="Only a network of images whose recipe is known can take pixels.",
        )
    model = FromPixels(subject.model, subject.preprocessing).train(subject.model.training)
    ranges = {f"network.{name}": each for name, each in subject.ranges.items()}
    return replace(subject, model=model, ranges=ranges, takes_pixels=True)


def open_subject(
    model: nn.Module | str | os.PathLike[str] | Subject,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_channels: int | None = None,
    select: str = "auto",
    trust: str | tuple[str, ...] = (),
) -> Subject:
    """Return what is to be exported.

    Args:
        model: a live module, wrapped or not; a run's folder; a file that `torchkeep train` has
            written; a whole model; or the file of weights of a network that is named by `arch`, or
            recognised.
        arch: the network's name: see `torchkeep.networks.build`.
        num_classes: the classes of a network by its name.
        input_channels: its input channels.
        select: which state dict, or model, of a file with several.
        trust: packages whose classes a whole model may be made of: see `torchkeep.load_model`.

    Raises:
        WrongArgument: nothing tells what the network is.
        FileProblem: the file is missing, damaged, or of no readable kind.
        LoadMismatch: its weights are not of that network.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, nn.Module):
        inner = unwrapped(model)
        return Subject(_on_cpu(inner), f"a live {type(inner).__name__}")
    if not isinstance(model, str | os.PathLike):
        raise WrongArgument(
            f"a {type(model).__name__} is no network",
            advice="Give a module (weights go into one with load_into), a file, or a run's folder.",
        )
    path = Path(model)
    run = path if path.is_dir() else path.parent if _is_run(path.parent) else None
    file = _best_of(path) if path.is_dir() else path
    card = read_card(file)
    if card is not None:
        network, card = load_classifier(file, arch=arch)
        return Subject(
            network,
            file.name,
            arch=card.arch,
            classes=card.classes,
            preprocessing=card.preprocessing,
            is_recipe_told=True,
            run=run,
            ranges=card.qat or {},
            file=file,
        )
    if arch is None and (found := inspect(file)).role == "module":
        network = load_model(file, select=select, trust=trust)
        arch = _name_of(found, network)
    else:
        if arch is None:
            arch, told = recognised(file)
            num_classes = num_classes or told
        network = build(arch, num_classes=num_classes, input_channels=input_channels)
        load_into(network, file, select=select)
    recipe = usual_preprocessing(arch) if arch else None
    return Subject(network.eval(), file.name, arch=arch, preprocessing=recipe, run=run, file=file)


def _on_cpu(model: nn.Module) -> nn.Module:
    """Return a model on the CPU: itself, or a copy of one that is elsewhere."""
    device, _ = place_of(model)
    return model if device.type == "cpu" else copy.deepcopy(model).cpu()


def _is_run(folder: Path) -> bool:
    return (folder / SETTINGS_FILE).is_file()


def _best_of(run: Path) -> Path:
    names = (BEST_FILE, LAST_FILE)
    for name in names:
        if (run / name).is_file():
            return run / name
    raise FileMissing(
        f"there is no {' and no '.join(names)} in it",
        advice="Name the model's file, or a folder that torchkeep train has written.",
        path=run,
    )


def _name_of(whole: Inspection, network: nn.Module) -> str | None:
    """Return the network that a whole model is by its weights, all of them.

    Some have the same weights and other recipes, such as DeiT and ViT: timm's own say which.
    """
    names = [
        match.name
        for match in whole.architecture
        if match.score == 1 and match.input_channels == 3 and not (match.prefix or match.is_part)
    ]
    config = getattr(network, "pretrained_cfg", None)
    told = f"timm/{config.get('architecture')}" if isinstance(config, dict) else ""
    return told if told in names else next(iter(names), None)
