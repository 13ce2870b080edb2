"""torchvision: whole models of each kind, and the checkpoints of its training references."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from frameworks.expected import expecting

WHOLE = (
    "resnet18 mobilenet_v3_small efficientnet_b0 shufflenet_v2_x0_5 squeezenet1_1 googlenet "
    "densenet121 vit_b_32 swin_t convnext_tiny mnasnet0_5"
).split()


def write(folder: Path) -> None:
    for name in WHOLE:
        extra = {"init_weights": False} if name == "googlenet" else {}
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None, **extra)
        cls = f"{type(model).__module__}.{type(model).__name__}"
        path = expecting(
            folder / f"{name}_whole.pt", role="module", classes=[cls], verdict="needs-trust"
        )
        torch.save(model, path)
    _detection(folder)
    _segmentation(folder)
    _reference(folder)
    _transforms(folder)


def _detection(folder: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(
            "fasterrcnn_mobilenet_v3_large_fpn", weights=None, weights_backbone=None
        )
    path = expecting(folder / "detector_whole.pt", role="module", verdict="needs-trust")
    torch.save(model, path)
    torch.save(model.state_dict(), expecting(folder / "detector.pt", role="state_dict"))


def _segmentation(folder: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(
            "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None
        )
    torch.save(model, expecting(folder / "segmentation_whole.pt", role="module"))
    torch.save(model.state_dict(), expecting(folder / "segmentation.pt", role="state_dict"))


def _reference(folder: Path) -> None:
    """Write what references/classification/train.py saves at each epoch."""
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    main = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, main], [2])
    average = AveragedModel(model)
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model="squeezenet1_1", lr=0.1, amp=True, opt="sgd", epochs=10)
    checkpoint: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": args,
        "model_ema": average.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    path = expecting(
        folder / "reference.pth",
        role="checkpoint",
        framework=None,
        optimizers=["SGD"],
        schedulers=["lr_scheduler"],
        scalers=["scaler"],
        state_dicts={"model": "model", "model_ema": "ema"},
        verdict="data-only",
    )
    torch.save(checkpoint, path)


def _transforms(folder: Path) -> None:
    transforms = v2.Compose([v2.Resize(32), v2.ToDtype(torch.float32), v2.Normalize([0.5], [0.5])])
    path = expecting(folder / "transforms.pt", verdict="needs-trust")
    torch.save({"transforms": transforms, "interpolation": v2.InterpolationMode.BILINEAR}, path)
