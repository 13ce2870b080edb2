"""A small training run with everything random in it, which can be killed anywhere.

It writes what it saw (sample order, loss) to FOLDER/trace.jsonl, the places where it can be killed
to FOLDER/places as it comes by, and at the end a digest of everything to FOLDER/result.json. Of
several ranks each has a FOLDER of its own for that.
"""

from __future__ import annotations

import json
import os
import random
import signal
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from checkpointing.gang import join
from torchkeep.checkpointing import Checkpointer, capture
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.checkpointing.state.sharded import local_of

NUM_EPOCHS = 3
BATCH_SIZE = 4
NUM_SAMPLES = 18  # five batches, the last one short


@dataclass(frozen=True)
class Given:
    """What a run is told."""

    folder: Path
    device: str = "cpu"
    workers: int = 0
    optimizer: str = "adamw"
    every_steps: int = 2
    background: bool = True
    dropout: float = 0.4
    augment: str = "python numpy torch"
    """The generators that the samples' augmentation draws from."""
    accumulate: int = 1
    keeps_leftover: bool = False
    """Whether gradients of batches after an epoch's last step count in the next epoch."""
    dtype: str = "float32"
    schedule: str = "step"
    """When the learning rate changes: `step`, `epoch`, or `plateau`, by the loss of an epoch."""
    ema: bool = False
    scaler: bool = False
    private: bool = False
    """Whether the loop draws from generators of its own."""
    unfreeze: str = ""
    """How the first layers are unfrozen: `flags` at epoch 1, in an optimizer that has them all;
    `group` at epoch 1, or `group within` an epoch, in an optimizer that gains them."""
    die_at: tuple[str, ...] = ()
    """Where to die, at each place once."""
    ranks: int = 1
    """How many processes train together."""
    spread: str = "ddp"
    """How they do: `ddp`, or `fsdp`."""
    rank: int = 0
    """Which of them this is."""

    @property
    def own(self) -> Path:
        """The folder of what this rank tells."""
        return self.folder if self.ranks == 1 else self.folder / f"rank-{self.rank}"

    @property
    def num_samples(self) -> int:
        """How many samples there are; on several ranks a sampler has to repeat one."""
        return NUM_SAMPLES if self.ranks == 1 else NUM_SAMPLES * self.ranks - 1


DRAWS = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(6)}


class Noisy(Dataset):
    """Samples whose augmentation draws from one to three generators."""

    def __init__(self, augment: str, num_samples: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(num_samples, 6, generator=generator)
        self.labels = torch.randint(0, 3, (num_samples,), generator=generator)
        self.draws = [DRAWS[name] for name in augment.split()]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        noise = sum(draw() for draw in self.draws)
        return self.inputs[index] + 0.1 * noise, self.labels[index], index


def collate(samples: list[tuple[torch.Tensor, torch.Tensor, int]]) -> list[torch.Tensor]:
    """Mix the batch a little, as mixup does."""
    inputs, labels, indices = torch.utils.data.default_collate(samples)
    return [inputs * (0.9 + 0.2 * random.random()), labels, indices]


class Fp32Moments(torch.optim.Optimizer):
    """Adam for parameters of few bits, with moments of float32."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, self.state[parameter], group["lr"], *group["betas"])

    def update(self, parameter, state, lr: float, beta1: float, beta2: float) -> None:
        grad = parameter.grad.float()
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(grad), "square": torch.zeros_like(grad)}
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].lerp_(grad.square(), 1 - beta2)
        mean = state["mean"] / (1 - beta1 ** state["step"])
        square = state["square"] / (1 - beta2 ** state["step"])
        parameter.copy_(parameter - lr * mean / (square.sqrt() + 1e-8))


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fp32 moments": lambda parameters: Fp32Moments(parameters, lr=0.01),
}

SCHEDULES = {
    "step": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    "epoch": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=0, threshold=0.2
    ),
}


@dataclass
class Parts:
    """What is trained, under the names that a `Checkpointer` has for it."""

    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    scheduler: object
    ema: AveragedModel | None = None
    scaler: torch.amp.GradScaler | None = None
    extra: dict = field(default_factory=lambda: {"best": {"loss": float("inf")}})


def build(given: Given) -> Parts:
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(given.dropout), nn.Linear(8, 3)
    bare = nn.Sequential(*layers).to(given.device, getattr(torch, given.dtype))
    if given.unfreeze:
        bare[:2].requires_grad_(False)
    model = spread(bare, given)
    trained = model[3] if "group" in given.unfreeze else model
    optimizer = OPTIMIZERS[given.optimizer](trained.parameters())
    parts = Parts(model, optimizer, SCHEDULES[given.schedule](optimizer))
    if given.ema:
        average = get_ema_multi_avg_fn(0.8)
        parts.ema = AveragedModel(bare, multi_avg_fn=average, use_buffers=True)
    if given.scaler:
        parts.scaler = torch.amp.GradScaler(given.device, init_scale=64.0, growth_interval=2)
    if given.private:
        parts.extra["torch"] = torch.Generator().manual_seed(1)
        parts.extra["numpy"] = np.random.default_rng(2)
        parts.extra["python"] = random.Random(3)
    return parts


def spread(model: nn.Sequential, given: Given) -> nn.Module:
    """Return a model as several ranks train it."""
    if given.ranks == 1:
        return model
    # Each rank drops other units, and augments by other numbers.
    torch.manual_seed(100 + given.rank)
    random.seed(100 + given.rank)
    np.random.seed(100 + given.rank)
    if given.spread == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    mesh = init_device_mesh(given.device, (given.ranks,))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main(given: Given, store: str = "") -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    given.own.mkdir(parents=True, exist_ok=True)
    if given.ranks > 1:
        join(given.rank, given.ranks, store, given.own / "stderr")
    Run(given).run()
    if given.ranks > 1:
        distributed.destroy_process_group()


def here(value: Any) -> Any:
    """Return a state with this rank's pieces in place of sharded tensors."""
    if isinstance(value, torch.Tensor):
        return local_of(value)
    if isinstance(value, dict):
        return {key: here(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([here(item) for item in value])
    return value


class Run:
    """One process of a run."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.parts = build(given)
        self.trace = (given.own / "trace.jsonl").open("a")
        data = Noisy(given.augment, given.num_samples)
        self.sampler = None
        if given.ranks > 1:
            self.sampler = DistributedSampler(data, given.ranks, given.rank, seed=3)
        self.loader = DataLoader(
            data,
            BATCH_SIZE,
            shuffle=self.sampler is None,
            sampler=self.sampler,
            num_workers=given.workers,
            multiprocessing_context="fork" if given.workers else None,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(3),
        )

    def run(self) -> None:
        options = {"keep_last": 2, "durable": False, "background": self.given.background}
        options["timeout_s"] = 60
        options["every_steps"] = self.given.every_steps
        folder = self.given.folder / "run"
        with self.trace, Checkpointer(folder, **vars(self.parts), **options) as ckpt:
            for epoch in ckpt.epochs(NUM_EPOCHS):
                self.begin(epoch)
                self.train(ckpt, epoch)
                self.end(ckpt, epoch)
        state = capture(vars(self.parts))
        digests = {name: fingerprint(here(node)) for name, node in state["objects"].items()}
        digests["rng"] = fingerprint(state["rng"])
        result = {"digests": digests, "history": ckpt.history}
        (self.given.own / "result.json").write_text(json.dumps(result, indent=1))

    def begin(self, epoch: int) -> None:
        """Do what an epoch begins with, which is done again when it is resumed."""
        self.parts.model.train()
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)
        torch.rand(3), random.random()
        if self.given.unfreeze in ("flags", "group"):
            if epoch == 0:
                self.parts.model[1].eval()  # frozen means its statistics too
            if epoch == 1:
                self.unfreeze()

    def unfreeze(self) -> None:
        layers = self.parts.model[:2].requires_grad_(True)
        if "group" in self.given.unfreeze:
            self.parts.optimizer.add_param_group({"params": layers.parameters(), "lr": 0.001})

    def train(self, ckpt: Checkpointer, epoch: int) -> None:
        accumulated = 0
        for inputs, labels, indices in ckpt.batches(self.loader):
            batch = ckpt.num_batches + accumulated
            self.reach(f"batch {epoch}.{batch}")
            if self.given.unfreeze == "group within" and ckpt.num_steps == 7:
                self.unfreeze()
            loss = self.learn(inputs, labels)
            line = {"epoch": epoch, "batch": batch, "indices": indices.tolist(), "loss": loss}
            self.trace.write(json.dumps(line) + "\n")
            self.trace.flush()
            self.reach(f"backward {epoch}.{batch}")
            accumulated = (accumulated + 1) % self.given.accumulate
            if not accumulated:
                self.update(ckpt, loss)
        if not self.given.keeps_leftover:
            self.parts.optimizer.zero_grad()

    def learn(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        outputs = self.parts.model(self.placed(inputs))
        if self.given.private:
            draws = [self.parts.extra[name].random() for name in ("numpy", "python")]
            draws.append(torch.rand(1, generator=self.parts.extra["torch"]).item())
            outputs = outputs * sum(draws)
        labels = labels.to(self.given.device)
        loss = nn.functional.cross_entropy(outputs.float(), labels) / self.given.accumulate
        (loss if self.parts.scaler is None else self.parts.scaler.scale(loss)).backward()
        return loss.item()

    def placed(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.to(self.given.device, getattr(torch, self.given.dtype))

    def update(self, ckpt: Checkpointer, loss: float) -> None:
        parts = self.parts
        if parts.scaler is None:
            parts.optimizer.step()
        else:
            parts.scaler.step(parts.optimizer)
            parts.scaler.update()
        parts.optimizer.zero_grad()
        if parts.ema is not None:
            parts.ema.update_parameters(getattr(parts.model, "module", parts.model))
        self.reach(f"update {ckpt.num_steps}")
        ckpt.step(loss=loss, noise=random.random())
        if self.given.schedule == "step":
            parts.scheduler.step()
        torch.rand(1)
        self.reach(f"step {ckpt.num_steps}")

    def end(self, ckpt: Checkpointer, epoch: int) -> None:
        loss = ckpt.means["loss"]
        self.reach(f"evaluation {epoch}")
        self.parts.extra["best"]["loss"] = min(self.parts.extra["best"]["loss"], loss)
        ckpt.metrics(draw=np.random.rand() + random.random(), **self.evaluate())
        if self.given.schedule == "epoch":
            self.parts.scheduler.step()
        if self.given.schedule == "plateau":
            self.parts.scheduler.step(loss)
        self.reach(f"end {epoch}")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the loss of the model, and of its average, without augmentation."""
        data, losses = self.loader.dataset, {}
        labels = data.labels.to(self.given.device)
        for name in ("model", "ema"):
            if (model := getattr(self.parts, name)) is not None:
                outputs = model.eval()(self.placed(data.inputs))
                losses[name] = nn.functional.cross_entropy(outputs.float(), labels).item()
        return losses

    def reach(self, place: str) -> None:
        """Note the place; die here if that is asked for, the first time that the run comes by."""
        with (self.given.own / "places").open("a") as places:
            places.write(f"{place}\n")
        if self.given.ranks > 1:
            place = f"{place} on {self.given.rank}"
        died = self.given.folder / "died" / place
        if place in self.given.die_at and not died.exists():
            died.parent.mkdir(exist_ok=True)
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
