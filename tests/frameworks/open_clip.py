"""OpenCLIP: the checkpoint that its training script writes, and its whole model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP

from frameworks.expected import expecting


def write(folder: Path) -> None:
    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    model = CLIP(16, vision, text)
    optimizer = torch.optim.AdamW(model.parameters())
    features = model(torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long))
    (features[0].sum() + features[1].sum()).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 2,
        "name": "2026_01_01-model_ViT",
        "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    path = expecting(
        folder / "epoch_2.pt",
        role="checkpoint",
        optimizers=["AdamW"],
        scalers=["scaler"],
        state_dicts={"state_dict": "model"},
    )
    torch.save(checkpoint, path)
    torch.save(model, expecting(folder / "whole.pt", role="module", framework="OpenCLIP"))
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    torch.save(tokenizer, expecting(folder / "tokenizer.pt", role="object"))
