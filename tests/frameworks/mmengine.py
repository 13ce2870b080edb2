"""MMEngine: the checkpoints of its Runner, and the older ones of mmcv by its documented layout."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner, save_checkpoint
from torch.utils.data import DataLoader, TensorDataset

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures, train


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet()

    def forward(self, images: Any, labels: Any, mode: str = "tensor") -> Any:
        scores = self.net(images)
        if mode == "loss":
            return {"loss": torch.nn.functional.cross_entropy(scores, labels)}
        return scores


def write(folder: Path) -> None:
    logging.disable(logging.CRITICAL)
    facts = {"role": "checkpoint", "framework": "mmengine", "optimizers": ["SGD"]}
    for name, wrapper in (("plain", "OptimWrapper"), ("mixed", "AmpOptimWrapper")):
        if wrapper == "AmpOptimWrapper":
            continue  # wants a GPU
        _run(folder / name, wrapper, [])
        expecting(
            folder / name / "epoch_1.pth",
            state_dicts={"state_dict": "model"},
            schedulers=["param_schedulers.0"],
            **facts,
        )
    _run(folder / "ema", "OptimWrapper", [EMAHook()])
    expecting(
        folder / "ema" / "epoch_1.pth",
        state_dicts={"state_dict": "model", "ema_state_dict": "ema"},
        **facts,
    )
    path = folder / "published.pth"
    net = SmallNet()
    save_checkpoint({"meta": {"epoch": 1}, "state_dict": net.state_dict()}, str(path))
    expecting(path, role="checkpoint", state_dicts={"state_dict": "model"})
    config = Config({"model": {"type": "ResNet", "depth": 50}, "lr": 0.1})
    torch.save({"cfg": config, "state_dict": net.state_dict()}, expecting(folder / "config.pth"))
    _mmcv(folder)


def _run(folder: Path, wrapper: str, hooks: list[Any]) -> None:
    runner = Runner(
        Model(),
        work_dir=str(folder),
        train_dataloader=DataLoader(TensorDataset(*pictures()), batch_size=4),
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={
            "type": wrapper,
            "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
        },
        param_scheduler={"type": "MultiStepLR", "milestones": [1]},
        default_hooks={"checkpoint": {"type": CheckpointHook, "interval": 1}},
        custom_hooks=hooks,
        experiment_name=folder.name,
    )
    runner.train()


def _mmcv(folder: Path) -> None:
    """Write what mmcv.runner.save_checkpoint of mmcv 1.x writes (and mmdet adds)."""
    net = SmallNet()
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    train(net, [sgd])
    meta = {
        "env_info": "sys.platform: linux",
        "config": "model = dict(type='FasterRCNN')",
        "seed": None,
        "exp_name": "faster_rcnn.py",
        "epoch": 12,
        "iter": 87960,
        "mmcv_version": "1.3.16",
        "time": "Mon Jan  1 00:00:00 2021",
        "mmdet_version": "2.18.0",
        "CLASSES": ("person", "bicycle"),
        "hook_msgs": {},
    }
    facts = {"role": "checkpoint", "framework": "mmcv", "stand_in": True}
    states = {"state_dict": "model"}
    path = expecting(folder / "mmcv.pth", optimizers=["SGD"], state_dicts=states, **facts)
    weights = OrderedDict(net.state_dict())
    torch.save({"meta": meta, "state_dict": weights, "optimizer": sgd.state_dict()}, path)
    path = expecting(folder / "mmcv_published.pth", optimizers=[], state_dicts=states, **facts)
    torch.save({"meta": meta, "state_dict": weights}, path)
