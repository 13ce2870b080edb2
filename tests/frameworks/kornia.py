"""Kornia: augmentations and matchers whole."""

from __future__ import annotations

from pathlib import Path

import torch
from kornia import augmentation
from kornia.feature import HardNet
from kornia.filters import GaussianBlur2d

from frameworks.expected import expecting


def write(folder: Path) -> None:
    pipeline = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(), augmentation.ColorJitter(0.1, 0.1, 0.1, 0.1)
    )
    facts = {"role": "module", "verdict": "needs-trust"}
    torch.save(pipeline, expecting(folder / "augmentations.pt", **facts))
    torch.save(GaussianBlur2d((3, 3), (1.0, 1.0)), expecting(folder / "blur.pt", **facts))
    torch.save(HardNet(), expecting(folder / "hardnet_whole.pt", **facts))
    torch.save(HardNet().state_dict(), expecting(folder / "hardnet.pt", role="state_dict"))
