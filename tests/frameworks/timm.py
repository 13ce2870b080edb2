"""timm: the checkpoints of its own saver, its averages, and all of its optimizers."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV2, ModelEmaV3, NativeScaler

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train

FAMILIES = {
    "AdafactorBigVision": "Adafactor",
    "Lars": "LARS",
    "AdamWLegacy": "AdamW",
    "NAdamLegacy": "NAdam",
    "NvNovoGrad": "NovoGrad",
    "RAdamLegacy": "Adam or RAdam",
}
"""Classes that go by another name than their algorithm."""
MODELS = "resnet18 vit_tiny_patch16_224 convnext_atto mobilenetv3_small_050 efficientvit_b0".split()


def write(folder: Path) -> None:
    for name in MODELS:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=7)
        torch.save(model, expecting(folder / f"{name}_whole.pt", role="module", framework="timm"))
        path = expecting(folder / f"{name}.pt", role="state_dict", state_dicts={"": "model"})
        torch.save(model.state_dict(), path)
    _saver(folder)
    _averages(folder)
    _optimizers(folder)
    _safetensors(folder)


def _saver(folder: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=5)
    args = argparse.Namespace(model="test_resnet", opt="adamw", lr=1e-3, sched="cosine")
    ema = ModelEmaV3(model, decay=0.99)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    out = folder / "saver"
    out.mkdir()
    saver = CheckpointSaver(
        model=model,
        optimizer=optimizer,
        args=args,
        model_ema=ema,
        amp_scaler=NativeScaler("cpu"),
        checkpoint_dir=str(out),
        recovery_dir=str(out),
    )
    saver.save_checkpoint(1, metric=0.5)
    saver.save_checkpoint(2, metric=0.75)
    saver.save_recovery(2, batch_idx=3)
    for path in sorted(out.iterdir()):
        expecting(
            path,
            role="checkpoint",
            framework="timm",
            optimizers=["AdamW"],
            state_dicts={"state_dict": "model", "state_dict_ema": "ema"},
            scalers=["amp_scaler"],
        )
    path = expecting(folder / "scheduler.pt", schedulers=["scheduler"])
    torch.save({"model": model.state_dict(), "scheduler": scheduler.state_dict()}, path)


def _averages(folder: Path) -> None:
    model = SmallNet()
    for name, average in (("v2", ModelEmaV2(model)), ("v3", ModelEmaV3(model))):
        path = expecting(
            folder / f"ema_{name}.pt",
            role="checkpoint",
            state_dicts={"model": "model", "ema": "ema"},
        )
        torch.save({"model": model.state_dict(), "ema": average.state_dict()}, path)
        torch.save(average, expecting(folder / f"ema_{name}_whole.pt", state_dicts={"": "ema"}))


def _optimizers(folder: Path) -> None:
    for name in list_optimizers():
        model = SmallNet()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer: Any = create_optimizer_v2(model, name, lr=1e-3)
                train(model, [optimizer])
        except (AssertionError, ImportError, RuntimeError, TypeError, ValueError):
            continue  # apex, bitsandbytes, or nothing for such small layers
        family = type(optimizer).__name__
        path = expecting(
            folder / "optimizers" / f"{name}.pt",
            role="optimizer",
            optimizers=[FAMILIES.get(family, family)],
        )
        torch.save(optimizer.state_dict(), path)


def _safetensors(folder: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3)
    path = folder / "hub"
    timm.models.save_for_hf(model, str(path), safe_serialization="both")
    expecting(path / "model.safetensors", role="state_dict", container="safetensors")
    expecting(path / "pytorch_model.bin", role="state_dict", container="torch-zip")
