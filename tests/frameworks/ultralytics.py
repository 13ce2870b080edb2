"""Ultralytics: what its trainer saves, and the stripped form that it gives away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import ClassificationModel, DetectionModel
from ultralytics.utils.torch_utils import EarlyStopping, ModelEMA, strip_optimizer

from frameworks.expected import expecting

NAME = "Ultralytics"


class _Trainer(BaseTrainer):
    """The real saving method, without the data set that a real trainer wants."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self.ema = ModelEMA(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.args = get_cfg()
        self.epoch, self.epochs, self.best_fitness, self.fitness = 1, 10, 0.4, 0.4
        self.stopper = EarlyStopping()
        self.metrics = {"metrics/mAP50": 0.5}
        self.save_period = -1
        self.save_dir = self.wdir = folder
        self.csv = folder / "results.csv"
        self.last, self.best = folder / "last.pt", folder / "best.pt"

    def read_results_csv(self) -> dict[str, Any]:
        return {"epoch": [1], "train/loss": [0.5]}


def write(folder: Path) -> None:
    for name, model in (
        ("detect", DetectionModel("yolov8n.yaml", verbose=False)),
        ("classify", ClassificationModel("yolov8n-cls.yaml", verbose=False)),
    ):
        out = folder / name
        out.mkdir()
        trainer = _Trainer(model, out)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
        trainer.save_model()
        facts = {"role": "checkpoint", "framework": NAME, "verdict": "needs-trust"}
        states = {"ema": "ema"}
        for path in (trainer.last, trainer.best):
            expecting(path, optimizers=["SGD"], state_dicts=states, **facts)
        stripped = expecting(out / "stripped.pt", optimizers=[], **facts)
        strip_optimizer(trainer.best, stripped)
    yolo = YOLO("yolov8n.yaml")
    yolo.save(expecting(folder / "saved.pt", framework=NAME, role="checkpoint"))
    path = expecting(folder / "whole.pt", framework=NAME, role="module")
    torch.save(yolo.model, path)
