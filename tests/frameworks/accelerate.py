"""Accelerate: the folders of save_state and save_model."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures, train


def write(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    net = SmallNet()
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    loader = DataLoader(TensorDataset(*pictures()), batch_size=4, shuffle=True)
    net, optimizer, loader, scheduler = accelerator.prepare(net, optimizer, loader, scheduler)
    train(net, [optimizer])
    for safe in (True, False):
        out = folder / ("state" if safe else "state_bin")
        accelerator.save_state(str(out), safe_serialization=safe)
        expecting(out, role="checkpoint", framework="Accelerate", optimizers=["AdamW"])
        name = "model.safetensors" if safe else "pytorch_model.bin"
        expecting(out / name, role="state_dict", state_dicts={"": "model"})
        expecting(out / "optimizer.bin", role="optimizer", optimizers=["AdamW"])
        expecting(out / "scheduler.bin", role="object", schedulers=[""])
        expecting(
            out / "random_states_0.pkl",
            role="object",
            rng=["random_state", "numpy_random_seed", "torch_manual_seed"],
        )
        accelerator.save_model(net, str(folder / f"model_{safe}"), safe_serialization=safe)
