"""Small runs on disk, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchkeep.checkpointing import Checkpointer
from torchkeep.formats.own.manifest import manifest_digest


def make_run(folder: Path, val_losses: Sequence[float] = (0.3, 0.1, 0.2), **options: Any) -> Path:
    """Make a run of one step per epoch, with a checkpoint after each; return its folder."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"durable": False, "keep_last": None, "background": False} | options
    with Checkpointer(folder, model=model, optimizer=optimizer, **options) as ckpt:
        for epoch in ckpt.epochs(len(val_losses)):
            for _ in ckpt.batches(torch.utils.data.DataLoader([0.0])):
                ckpt.step(loss=1.0)
            ckpt.metrics(val_loss=val_losses[epoch])
    return folder


def change_manifest(checkpoint: Path, **facts: Any) -> None:
    """Change facts of a manifest, so that it is as whole as before."""
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | facts
    manifest["digest"] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def cut(checkpoint: Path) -> None:
    """Damage a checkpoint so that sizes tell it."""
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(checkpoint: Path) -> None:
    """Damage a checkpoint so that only reading it tells it."""
    path = checkpoint / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
