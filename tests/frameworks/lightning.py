"""Lightning: trainers with callbacks, several optimizers, mixed precision; Fabric; old layouts."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as pl
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures


class Classifier(pl.LightningModule):
    """One network, one optimizer, one scheduler."""

    def __init__(self, width: int = 4, args: Any = None, loss: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = SmallNet(width)

    def training_step(self, batch: Any, index: int) -> Any:
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Gan(pl.LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = SmallNet(), SmallNet()

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer, net in zip(self.optimizers(), (self.a, self.b), strict=True):
            loss = net(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.a.parameters()), torch.optim.SGD(self.b.parameters(), 0.1)]


def write(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    facts = {"role": "checkpoint", "framework": "Lightning"}
    states = {"state_dict": "model"}
    plain = Classifier()
    arguments = Classifier(args=argparse.Namespace(lr=0.1), loss=torch.nn.CrossEntropyLoss())
    callbacks = [
        EarlyStopping("loss"),
        ModelCheckpoint(folder / "callbacks", monitor="loss", save_last=True, save_top_k=2),
        LearningRateMonitor(),
    ]
    one: dict[str, Any] = {"optimizers": ["Adam"], "state_dicts": states}
    _fit(plain, folder / "plain.ckpt", schedulers=["lr_schedulers.0"], **one, **facts)
    _fit(arguments, folder / "arguments.ckpt", **one, **facts)
    _fit(Classifier(), folder / "callbacks.ckpt", callbacks, **one, **facts)
    for path in sorted((folder / "callbacks").iterdir()):
        expecting(path, **one, **facts)
    swa = StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    _fit(Classifier(), folder / "swa.ckpt", [swa], **facts)
    _fit(
        Classifier(),
        folder / "averaging.ckpt",
        [WeightAveraging()],
        role="checkpoint",
        framework="Lightning",
    )
    _fit(Gan(), folder / "gan.ckpt", optimizers=["AdamW", "SGD"], state_dicts=states, **facts)
    trainer = _trainer(folder, [])
    trainer.fit(plain, _loader())
    path = expecting(folder / "weights_only.ckpt", state_dicts=states, optimizers=[], **facts)
    trainer.save_checkpoint(path, weights_only=True)
    _fabric(folder)
    _old(folder)


def _loader() -> Any:
    return DataLoader(TensorDataset(*pictures(16)), batch_size=4)


def _trainer(folder: Path, callbacks: list[Any]) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger("logs"),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(item, ModelCheckpoint) for item in callbacks),
        log_every_n_steps=1,
    )


def _fit(module: Any, path: Path, callbacks: Any = (), **facts: Any) -> None:
    trainer = _trainer(path.parent, list(callbacks))
    trainer.fit(module, _loader())
    trainer.save_checkpoint(expecting(path, **facts))


def _fabric(folder: Path) -> None:
    fabric = Fabric(accelerator="cpu")
    net = SmallNet()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1))
    path = expecting(
        folder / "fabric.ckpt",
        role="checkpoint",
        optimizers=["SGD"],
        state_dicts={"model": "model"},
    )
    fabric.save(path, {"model": model, "optimizer": optimizer, "step": 3})


def _old(folder: Path) -> None:
    """Write the layout of Lightning 1.0 to 1.9: scaling state, no loops, tuple-named callbacks."""
    net = SmallNet()
    optimizer = torch.optim.Adam(net.parameters())
    checkpoint = {
        "epoch": 2,
        "global_step": 20,
        "pytorch-lightning_version": "1.1.4",
        "state_dict": {f"net.{key}": value for key, value in net.state_dict().items()},
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "native_amp_scaling_state": torch.amp.GradScaler("cpu").state_dict(),
        "hparams_name": "hparams",
        "hyper_parameters": {"width": 4},
    }
    facts = {"role": "checkpoint", "framework": "Lightning", "stand_in": True}
    path = expecting(
        folder / "old_1.1.ckpt", scalers=["native_amp_scaling_state"], optimizers=["Adam"], **facts
    )
    torch.save(checkpoint, path)
    oldest = {
        "epoch": 1,
        "global_step": 5,
        "checkpoint_callback_best": 0.5,
        "early_stop_callback_wait": 0,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "state_dict": net.state_dict(),
        "hparams": argparse.Namespace(width=4),
    }
    path = expecting(folder / "old_0.6.ckpt", optimizers=["Adam"], **facts)
    torch.save(oldest, path)
