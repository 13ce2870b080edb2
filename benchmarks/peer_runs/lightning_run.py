"""The run with Lightning: `ModelCheckpoint`, and `fit(ckpt_path=...)` with the newest file."""

from __future__ import annotations

import logging

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, EMAWeightAveraging, ModelCheckpoint

from peer_runs import task

VERSION = L.__version__


class Module(L.LightningModule):
    def __init__(self, given: task.Given) -> None:
        super().__init__()
        self.given = given
        self.network = task.network(given)

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        loss = self.network(batch["inputs"], batch["labels"])
        number = self.current_epoch * task.NUM_BATCHES + batch_idx
        task.note(self.given, number, batch["indices"], loss)
        return loss

    def on_after_backward(self) -> None:
        batch = self.trainer.fit_loop.epoch_loop.batch_idx
        task.reach(self.given, self.current_epoch * task.NUM_BATCHES + batch)

    def on_train_epoch_start(self) -> None:
        if self.given.unfreeze == "flags" and self.current_epoch == 1:
            self.network.body.requires_grad_(True)

    def configure_optimizers(self):
        optimizer = task.optimizer_for(self.given, self.network)
        scheduler = task.scheduler_for(self.given, optimizer)
        return [optimizer], [{"scheduler": scheduler, "interval": self.given.schedule}]


class Unfreezing(BaseFinetuning):
    def freeze_before_training(self, module) -> None:
        self.freeze(module.network.body, train_bn=False)

    def finetune_function(self, module, epoch: int, optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.network.body, optimizer, lr=0.001)


def run(given: task.Given) -> None:
    logging.getLogger("lightning").setLevel(logging.ERROR)
    L.seed_everything(7, workers=True, verbose=False)
    when = {"every_n_train_steps": given.every_steps} if given.by == "steps" else {}
    callbacks = [ModelCheckpoint(given.folder / "saved", save_last=True, **when)]
    if given.ema:
        callbacks.append(EMAWeightAveraging(decay=0.8))
    if given.unfreeze == "group":
        callbacks.append(Unfreezing())
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=task.NUM_EPOCHS,
        accumulate_grad_batches=given.accumulate,
        callbacks=callbacks,
        deterministic=True,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=given.folder,
    )
    module = Module(given)
    last = given.folder / "saved" / "last.ckpt"
    trainer.fit(module, task.loader_for(given), ckpt_path=last if last.exists() else None)
    task.finish(given, module.network, trainer.optimizers[0])
