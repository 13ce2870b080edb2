"""A small run with the code of a recipe, as `docs/recipes.md` has it, which can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torchkeep.checkpointing.state.encoding import fingerprint

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


@dataclass(frozen=True)
class Given:
    """What a run is told."""

    folder: Path
    recipe: str
    workers: int = 0
    die_at: int = -1
    """After which step to die, once."""


class Noisy(Dataset):
    """Samples with an augmentation that draws from all three generators."""

    def __init__(self) -> None:
        self.inputs = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.rand(6) + random.random() + np.random.rand()
        return {"inputs": (self.inputs[index] + noise).float(), "labels": torch.tensor(index % 3)}


class Network(nn.Module):
    """A network that returns its loss, notes it, and dies where it is told."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3)
        )
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, **others) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.layers(inputs), labels)
        self.calls += 1
        with (self.given.folder / "trace.jsonl").open("a") as trace:
            trace.write(json.dumps([self.calls.item(), loss.item()]) + "\n")
        died = self.given.folder / "died"
        if self.calls == self.given.die_at and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss


def code_of(recipe: str) -> str:
    """Return the code under a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(recipe)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return "\n".join(re.findall(r"^```py\n(.*?)^```$", section[1], re.M | re.S))


def main(given: Given) -> None:
    os.setpgrp()
    os.chdir(given.folder)
    # The recipe's classes are in no module that a new process could import.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    network = Network(given)
    context = "fork" if given.workers else None
    names = {
        "dataset": Noisy(),
        "loader": DataLoader(
            Noisy(), 4, shuffle=True, num_workers=given.workers, multiprocessing_context=context
        ),
        "model": network,
    }
    optimizer_of = PREPARE[given.recipe](given, network, names)
    exec(compile(code_of(given.recipe), str(PAGE), "exec"), names)
    state = {"model": dict(network.state_dict()), "optimizer": optimizer_of(names).state_dict()}
    result = {name: fingerprint(item) for name, item in state.items()}
    Path("result.json").write_text(json.dumps(result))


def prepare_accelerate(given: Given, network: nn.Module, names: dict):
    optimizer = names["optimizer"] = torch.optim.AdamW(network.parameters(), lr=0.01)
    names["scheduler"] = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return lambda names: optimizer


def prepare_lightning(given: Given, network: nn.Module, names: dict):
    from lightning import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch, batch_idx):
            return self.network(**batch)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    names["module"] = Module()
    return lambda names: names["trainer"].optimizers[0]


def prepare_transformers(given: Given, network: nn.Module, names: dict):
    from transformers import TrainingArguments

    class Output(nn.Module):
        """The network with the output that the `Trainer` wants."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, **inputs):
            return {"loss": self.network(**inputs)}

    names["model"] = Output()
    names["arguments"] = TrainingArguments(
        output_dir="saved",
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        dataloader_num_workers=given.workers,
        save_steps=2,
        learning_rate=0.01,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
    )
    return lambda names: names["trainer"].optimizer


PREPARE = {
    "accelerate": prepare_accelerate,
    "Lightning": prepare_lightning,
    "The Trainer of transformers": prepare_transformers,
}
