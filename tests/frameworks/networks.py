"""Small networks of the usual parts, trained for a step or two so that optimizers have a state."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class SmallNet(nn.Module):
    """A convolution, a batch norm, a linear layer: 4 by 4 pictures of one channel, 3 classes."""

    def __init__(self, width: int = 4, num_classes: int = 3) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(self.drop(x.mean((2, 3))))


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.ConvTranspose2d(8, 4, 4), nn.BatchNorm2d(4), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(4, 1, 4), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


def pictures(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures and their labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 4, 4, generator=generator)
    return images, torch.arange(count) % 3


def train(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], num_steps: int = 2
) -> None:
    """Take a few steps with each optimizer."""
    images, labels = pictures()
    for optimizer in optimizers:

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():  # not every optimizer sees to it
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
            return loss

        for _ in range(num_steps):
            optimizer.step(closure)
