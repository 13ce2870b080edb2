"""The run with `torchkeep.Checkpointer`."""

from __future__ import annotations

import random

import numpy as np
import torch

from peer_runs import task
from torchkeep import Checkpointer


def run(given: task.Given) -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    model = task.network(given)
    optimizer = task.optimizer_for(given, model)
    scheduler = task.scheduler_for(given, optimizer)
    ema = task.average_of(model) if given.ema else None
    loader = task.loader_for(given)
    with Checkpointer(
        given.folder / "run",
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        every_steps=given.every_steps if given.by == "steps" else None,
        every_epochs=1 if given.by == "epochs" else None,
    ) as ckpt:
        for epoch in ckpt.epochs(task.NUM_EPOCHS):
            if given.unfreeze and epoch == 1:
                task.unfreeze(given, model, optimizer)
            waiting = 0
            for batch in ckpt.batches(loader):
                number = epoch * task.NUM_BATCHES + ckpt.num_batches + waiting
                loss = model(batch["inputs"], batch["labels"])
                (loss / given.accumulate).backward()
                task.note(given, number, batch["indices"], loss)
                task.reach(given, number)
                waiting = (waiting + 1) % given.accumulate
                if waiting:
                    continue
                optimizer.step()
                optimizer.zero_grad()
                if given.schedule == "step":
                    scheduler.step()
                if ema is not None:
                    ema.update_parameters(model)
                ckpt.step(loss=loss)
            if given.schedule == "epoch":
                scheduler.step()
    task.finish(given, model, optimizer, ema)
