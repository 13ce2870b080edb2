"""segmentation-models-pytorch: whole models, as its older guides save them, and save_pretrained."""

from __future__ import annotations

from pathlib import Path

import segmentation_models_pytorch as smp
import torch

from frameworks.expected import expecting


def write(folder: Path) -> None:
    for name in ("Unet", "FPN", "DeepLabV3Plus"):
        with torch.device("meta"):
            model = getattr(smp, name)("resnet18", encoder_weights=None, classes=2)
        cls = f"{type(model).__module__}.{type(model).__name__}"
        path = expecting(
            folder / f"{name}_whole.pth", role="module", classes=[cls], verdict="needs-trust"
        )
        torch.save(model, path)
        path = expecting(folder / f"{name}.pth", role="state_dict", state_dicts={"": "model"})
        torch.save(model.state_dict(), path)
    model = smp.Unet("timm-mobilenetv3_small_minimal_100", encoder_weights=None, classes=2)
    model.save_pretrained(folder / "hub")
    expecting(folder / "hub" / "model.safetensors", role="state_dict")
    losses = {"model": model.state_dict(), "loss": smp.losses.DiceLoss("binary")}
    torch.save(losses, expecting(folder / "with_loss.pth", role="checkpoint"))
