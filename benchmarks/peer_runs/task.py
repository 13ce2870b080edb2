"""What is trained, the same for all: a small network, data in an order, and where to die."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from torchkeep.checkpointing.state.encoding import fingerprint

NUM_EPOCHS = 3
BATCH_SIZE = 4
NUM_SAMPLES = 24
NUM_BATCHES = 6
"""Batches of an epoch; with accumulation, 3 of them make a step."""

DRAWS = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(6)}


@dataclass(frozen=True)
class Given:
    """What a run is told."""

    folder: Path
    by: str = "steps"
    """When to save: every two steps (every step with accumulation), or at each epoch's end."""
    workers: int = 0
    dropout: float = 0.4
    augment: str = ""
    accumulate: int = 1
    moments: bool = False
    """Parameters of bf16 whose moments are float32."""
    ema: bool = False
    schedule: str = "step"
    unfreeze: str = ""
    """`flags`: at epoch 1, in an optimizer that has all parameters. `group`: it gains them then."""
    die_at: int = -1
    """The batch of the whole run after whose backward to die, once."""

    @property
    def every_steps(self) -> int:
        """Steps between two checkpoints."""
        return 1 if self.accumulate > 1 else 2


class Samples(Dataset):
    """Samples with an augmentation that draws from one of the generators."""

    def __init__(self, augment: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(NUM_SAMPLES, 6, generator=generator)
        self.labels = torch.randint(0, 3, (NUM_SAMPLES,), generator=generator)
        self.augment = augment

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, object]:
        noise = DRAWS[self.augment]() if self.augment else 0.0
        return {
            "inputs": (self.inputs[index] + noise).float(),
            "labels": self.labels[index],
            "indices": index,
        }


class Network(nn.Module):
    """Two layers that can be unfrozen later, and a head."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 3))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        outputs = self.head(self.body(inputs.to(next(self.parameters()).dtype)))
        return nn.functional.cross_entropy(outputs.float(), labels)


class Fp32Moments(torch.optim.Optimizer):
    """RMSprop for parameters of few bits, with moments of float32."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure and torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in (item for item in group["params"] if item.grad is not None):
                grad, state = parameter.grad.float(), self.state[parameter]
                square = state.setdefault("square", torch.zeros_like(grad))
                # Who resumes with moments of few bits goes on with them.
                square.lerp_(grad.square().to(square.dtype), 0.01)
                parameter.copy_(parameter - group["lr"] * grad / (square.sqrt() + 1e-8))
        return loss


def network(given: Given) -> Network:
    model = Network(given.dropout)
    if given.moments:
        model.to(torch.bfloat16)
    if given.unfreeze:
        model.body.requires_grad_(False)
    return model


def optimizer_for(given: Given, model: Network) -> torch.optim.Optimizer:
    trained = model.head if given.unfreeze == "group" else model
    kind = Fp32Moments if given.moments else torch.optim.AdamW
    return kind(trained.parameters(), lr=0.01)


def scheduler_for(given: Given, optimizer: torch.optim.Optimizer):
    kinds = torch.optim.lr_scheduler
    if given.schedule == "epoch":
        return kinds.StepLR(optimizer, 1, 0.5)
    return kinds.ExponentialLR(optimizer, 0.9)


def average_of(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)


def unfreeze(given: Given, model: Network, optimizer: torch.optim.Optimizer) -> None:
    model.body.requires_grad_(True)
    if given.unfreeze == "group":
        optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.001})


def loader_for(given: Given) -> DataLoader:
    context = "fork" if given.workers else None
    return DataLoader(
        Samples(given.augment),
        BATCH_SIZE,
        shuffle=True,
        num_workers=given.workers,
        multiprocessing_context=context,
    )


def note(given: Given, number: int, indices: torch.Tensor, loss: torch.Tensor) -> None:
    """Write down what a batch of the whole run, from 0, was."""
    with (given.folder / "trace.jsonl").open("a") as trace:
        trace.write(json.dumps([number, indices.tolist(), loss.item()]) + "\n")


def reach(given: Given, number: int) -> None:
    """Die here, once, if this is the batch."""
    died = given.folder / "died"
    if number == given.die_at and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def finish(given: Given, model: nn.Module, optimizer, ema: nn.Module | None = None) -> None:
    """Write down the digests of what a run ended with."""
    parts = {"parameters": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    if ema is not None:
        parts["EMA"] = dict(ema.state_dict())
    result = {name: fingerprint(state) for name, state in parts.items()}
    (given.folder / "result.json").write_text(json.dumps(result))
