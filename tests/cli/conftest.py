"""Files to inspect, as plain torch writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

HOSTILE = "[red]\x1b[31m\n"
"""Markup, a terminal escape and a line break: none of them may work."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *(Block() for _ in range(3)), nn.Linear(4, 10))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a training checkpoint with everything that has a section of its own."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {
        "epoch": 12,
        "model_state_dict": nn.DataParallel(model).state_dict(),
        "ema_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "classes": [f"class {number}" for number in range(100)],
        "notes": "x" * 10_000,
        HOSTILE: HOSTILE,
    }
    path = tmp_path_factory.mktemp("files") / "checkpoint.pth"
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pickled model."""
    path = tmp_path_factory.mktemp("files") / "whole.pth"
    torch.save(make_model(), path)
    return path
