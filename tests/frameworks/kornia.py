"""Kornia: augmentations and matchers whole."""

from __future__ import annotations

from pathlib import Path

import torch
from kornia import augmentation
from kornia.feature import SOSNet
from kornia.filters import GaussianBlur2d

from frameworks.expected import expecting


def write(folder: Path) -> None:
    pipeline = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(), augmentation.ColorJitter(0.1, 0.1, 0.1, 0.1)
    )
    facts = {"role": "module", "verdict": "needs-trust"}
    torch.save(pipeline, expecting(folder / "augmentations.pt", **facts))
    torch.save(GaussianBlur2d((3, 3), (1.0, 1.0)), expecting(folder / "blur.pt", **facts))
    torch.save(SOSNet(pretrained=False), expecting(folder / "sosnet_whole.pt", **facts))
    torch.save(
        SOSNet(pretrained=False).state_dict(), expecting(folder / "sosnet.pt", role="state_dict")
    )
