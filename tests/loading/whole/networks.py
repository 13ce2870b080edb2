"""Models that are saved whole, of classes of this module and of PyTorch's."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A block with a function, a shared module and a buffer that no state dict has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = self.first
        self.act = functional.gelu
        self.scale = math.sqrt(width)
        self.register_buffer("positions", torch.arange(float(width)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(x))) / self.scale + self.positions


class Net(nn.Module):
    """A model with tied weights, a frozen part, a part in another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = Block(6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.norm.weight.requires_grad_(False)
        self.norm.eval()
        self.labels = {"cat": 0, "dog": 1}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.embed(x))))


class MovedNet(Net):
    """The same under another name."""


def tokens() -> torch.Tensor:
    return torch.tensor([[1, 2, 3], [4, 5, 10]])


def names(*classes: type) -> dict[str, type]:
    """Return the classes by the names that files have for them."""
    return {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
