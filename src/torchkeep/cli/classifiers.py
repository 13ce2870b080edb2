"""What the verbs have in common that use a model which `torchkeep train` has written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from torchkeep.training.classifier import Card


def add_classifier(parser: argparse.ArgumentParser) -> None:
    """Give a verb its model, and the switches that say which network it is and where it runs."""
    parser.add_argument("model", metavar="MODEL", help="a model that torchkeep train has written")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--arch", metavar="NAME", help="the network, if it is module:callable: code of your own"
    )


def classifier_of(options: argparse.Namespace) -> tuple[nn.Module, Card]:
    """Return the model of a verb, on the device that it was told, and what it is.

    Raises:
        TorchkeepError: see `load_classifier` and `chosen_device`.
    """
    from torchkeep.training.classifier import load_classifier
    from torchkeep.training.machine import chosen_device

    device = chosen_device(options.device)
    model, card = load_classifier(options.model, arch=options.arch)
    return model.to(device), card
