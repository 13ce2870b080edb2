"""A small training run with everything random in it, which can be killed anywhere.

It writes what it saw (sample order, loss) to FOLDER/trace.jsonl, and at the end a digest of
everything to FOLDER/result.json.
"""

from __future__ import annotations

import json
import os
import random
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torchkeep.checkpointing import Checkpointer, capture
from torchkeep.checkpointing.encoding import fingerprint

NUM_EPOCHS = 3
BATCH_SIZE = 4
NUM_SAMPLES = 18  # five batches, the last one short


class Noisy(Dataset):
    """Samples whose augmentation draws from three generators."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(NUM_SAMPLES, 6, generator=generator)
        self.labels = torch.randint(0, 3, (NUM_SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        noise = random.random() + np.random.rand() + torch.rand(6)
        return self.inputs[index] + 0.1 * noise, self.labels[index], index


def collate(samples: list[tuple[torch.Tensor, torch.Tensor, int]]) -> list[torch.Tensor]:
    """Mix the batch a little, as mixup does."""
    inputs, labels, indices = torch.utils.data.default_collate(samples)
    return [inputs * (0.9 + 0.2 * random.random()), labels, indices]


def build(optimizer_name: str) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3))
    kinds = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.01),
    }
    optimizer = kinds[optimizer_name]()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    return model, optimizer, scheduler


@dataclass(frozen=True)
class Given:
    """What a run is told."""

    folder: Path
    workers: int = 0
    optimizer: str = "adamw"
    every_steps: int = 2
    accumulate: int = 1
    die_at: str = ""


def main(given: Given) -> None:
    os.setpgrp()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    Path(given.folder).mkdir(parents=True, exist_ok=True)
    run(given)


def run(given: Given) -> None:
    model, optimizer, scheduler = build(given.optimizer)
    loader = DataLoader(
        Noisy(),
        BATCH_SIZE,
        shuffle=True,
        num_workers=given.workers,
        multiprocessing_context="fork" if given.workers else None,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(3),
    )
    best = {"loss": float("inf")}
    with (
        (given.folder / "trace.jsonl").open("a") as trace,
        Checkpointer(
            given.folder / "run",
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            extra={"best": best},
            every_steps=given.every_steps,
            keep_last=2,
            durable=False,
        ) as ckpt,
    ):
        for epoch in ckpt.epochs(NUM_EPOCHS):
            model.train()
            torch.rand(3), random.random()  # a preamble that draws
            for number, (inputs, labels, indices) in enumerate(ckpt.batches(loader), 1):
                reach(given, f"batch:{ckpt.num_steps}")
                loss = nn.functional.cross_entropy(model(inputs), labels)
                (loss / given.accumulate).backward()
                line = {"epoch": epoch, "indices": indices.tolist(), "loss": loss.item()}
                trace.write(json.dumps(line) + "\n")
                trace.flush()
                if number % given.accumulate:
                    continue
                optimizer.step()
                optimizer.zero_grad()
                ckpt.step(loss=loss.item(), noise=random.random())
                scheduler.step()
                torch.rand(1)
                reach(given, f"step:{ckpt.num_steps}")
            optimizer.zero_grad()
            reach(given, f"evaluation:{epoch}")
            best["loss"] = min(best["loss"], ckpt.means["loss"])
            ckpt.metrics(draw=np.random.rand() + random.random())
    state = capture({"model": model, "optimizer": optimizer, "scheduler": scheduler, "best": best})
    parts = {name: fingerprint(node) for name, node in state["objects"].items()}
    parts["rng"] = fingerprint(state["rng"])
    result = {"digests": parts, "history": ckpt.history}
    (given.folder / "result.json").write_text(json.dumps(result, indent=1))


def reach(given: Given, place: str) -> None:
    """Die here, the first time that the run comes by."""
    died = given.folder / "died"
    if given.die_at == place and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
