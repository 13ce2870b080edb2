"""Every scheduler of torch.optim.lr_scheduler: its state in a checkpoint, and pickled whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import optim
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train


class Warmup:
    """A callable object, of which a LambdaLR keeps the attributes."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        return min(1.0, step / self.num_steps)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "constant": schedulers.ConstantLR,
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 10),
    "cosine_restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 5),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.1),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "lambda_object": lambda o: schedulers.LambdaLR(o, Warmup(4)),
    "linear": schedulers.LinearLR,
    "multi_step": lambda o: schedulers.MultiStepLR(o, [2, 4]),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, Warmup(2)),
    "one_cycle": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=20),
    "plateau": schedulers.ReduceLROnPlateau,
    "polynomial": schedulers.PolynomialLR,
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], [2]
    ),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]
    ),
    "step": lambda o: schedulers.StepLR(o, 2),
    "swa": lambda o: SWALR(o, 0.05),
}


def write(folder: Path) -> None:
    for name, make in MAKERS.items():
        model = SmallNet()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        train(model, [optimizer])
        scheduler.step(*([0.5] if name == "plateau" else []))
        _save(folder, name, model, optimizer, scheduler)
    _scaler(folder)


def _save(folder: Path, name: str, model: Any, optimizer: Any, scheduler: Any) -> None:
    checkpoint = {
        "net": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 1,
    }
    facts = {"role": "checkpoint", "optimizers": ["SGD"], "schedulers": ["scheduler"]}
    torch.save(checkpoint, expecting(folder / f"{name}.pt", framework=None, **facts))
    path = expecting(folder / f"{name}_alone.pt", role="object", schedulers=[""])
    torch.save(scheduler.state_dict(), path)
    if name not in ("lambda", "cyclic"):  # a lambda, and a weak method, can't be pickled
        checkpoint["scheduler"] = scheduler
        torch.save(checkpoint, expecting(folder / f"{name}_whole.pt", **facts))


def _scaler(folder: Path) -> None:
    model = SmallNet()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    state = scaler.state_dict()
    checkpoint = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    path = expecting(folder / "scaler.pt", role="checkpoint", scalers=["scaler"])
    torch.save({**checkpoint, "scaler": state}, path)
    path = expecting(folder / "scaler_off.pt", role="checkpoint", scalers=[])
    torch.save(
        {**checkpoint, "scaler": torch.amp.GradScaler("cpu", enabled=False).state_dict()}, path
    )
    path = expecting(folder / "scaler_alone.pt", role="object", scalers=[""])
    torch.save(state, path)
