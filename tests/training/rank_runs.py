"""What the ranks of `test_distributed` do."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch

from torchkeep.training.preparing import prepare
from torchkeep.training.retraining import Event, Result, retrain
from torchkeep.training.settings import Settings

USUAL: dict[str, Any] = {
    "arch": "training.samples:Plain",
    "weights": "none",
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.02,
    "size": 12,
}


def train(folder: Path, options: dict[str, Any], kill_at: int | None = None) -> dict[str, Any]:
    """Train, and return what came of it; the rank that speaks dies after a step, if it is to."""
    options = USUAL | options
    data = options.pop("data", "training.samples:stripes")
    told: list[str] = []

    def notify(event: Event) -> None:
        told.append(event.kind)
        if event.kind == "step" and event.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare(data, Settings(**options))
        result: Result = retrain(prepared, folder, notify=notify)
    said, model = result.answers, prepared.start.model
    return {
        "history": list(result.history),
        "stopped": result.stopped_early,
        "answers": [said.labels.tolist(), said.predicted.tolist(), said.loss.tolist()],
        "buffers": [item.tolist() for item in model.buffers()],
        "told": sorted(set(told)),
        "random": torch.rand(()).item(),
    }


def on_rank(rank: int, folder: Path, options: dict[str, Any], kill_at: int | None) -> Any:
    return train(folder, options, kill_at)


def kinds_on_rank(rank: int, folder: Path, kinds: dict[str, dict[str, Any]]) -> Any:
    return {name: train(folder / name, options) for name, options in kinds.items()}
