"""Catalyst: what its own packing of a checkpoint makes; its runner needs an older accelerate."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from catalyst import utils

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    net = SmallNet()
    adam = torch.optim.Adam(net.parameters())
    train(net, [adam])
    loss = torch.nn.CrossEntropyLoss()
    packed = utils.pack_checkpoint(
        model=net, criterion=loss, optimizer=adam, epoch_metrics={}, loader_metrics={}
    )
    path = expecting(
        folder / "packed.pth", role="checkpoint", framework="Catalyst", optimizers=["Adam"]
    )
    utils.save_checkpoint(packed, path=str(path))
