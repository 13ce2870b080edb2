"""torch_ema and ema_pytorch: averages beside the model they belong to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch_ema import ExponentialMovingAverage

from frameworks.expected import expecting
from frameworks.networks import SmallNet


def write(folder: Path) -> None:
    net = SmallNet()
    average = ExponentialMovingAverage(net.parameters(), decay=0.9)
    average.update()
    path = expecting(folder / "torch_ema.pt", role="checkpoint")
    torch.save({"model": net.state_dict(), "ema": average.state_dict()}, path)
    torch.save(average.state_dict(), expecting(folder / "torch_ema_alone.pt"))
    _ema_pytorch(folder)


def _ema_pytorch(folder: Path) -> None:
    try:
        from ema_pytorch import EMA
    except ImportError:
        return
    net = SmallNet()
    average = EMA(net)
    average.update()
    path = expecting(
        folder / "ema_pytorch.pt",
        role="checkpoint",
        state_dicts={"model": "model", "ema": "ema"},
    )
    torch.save({"model": net.state_dict(), "ema": average.state_dict()}, path)
    torch.save(average, expecting(folder / "ema_pytorch_whole.pt", role="module"))
