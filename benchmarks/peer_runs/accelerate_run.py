"""The run with accelerate: `save_state`, `load_state` and `skip_first_batches`.

As in its guide on checkpoints, with the epoch set anew as its loaders want it after a resume.
"""

from __future__ import annotations

from pathlib import Path

import accelerate
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed

from peer_runs import task

VERSION = accelerate.__version__


def newest(folder: Path) -> Path | None:
    """Return the checkpoint with the largest number; one that is half there may be it."""
    found = folder.glob("step_*")
    return max(found, key=lambda path: int(path.name.removeprefix("step_")), default=None)


def run(given: task.Given) -> None:
    set_seed(7)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=given.accumulate,
        step_scheduler_with_optimizer=given.schedule == "step",
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=7),
    )
    bare = task.network(given)
    plain = task.optimizer_for(given, bare)
    ema = task.average_of(bare) if given.ema else None
    model, optimizer, loader, scheduler = accelerator.prepare(
        bare, plain, task.loader_for(given), task.scheduler_for(given, plain)
    )
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    saved, number = given.folder / "saved", 0
    if (path := newest(saved)) is not None:
        accelerator.load_state(str(path))
        number = int(path.name.removeprefix("step_"))
    start = number // task.NUM_BATCHES
    for epoch in range(start, task.NUM_EPOCHS):
        model.train()
        if given.unfreeze and epoch == 1:
            task.unfreeze(given, bare, optimizer)
        loader.set_epoch(epoch)
        skipped = number - epoch * task.NUM_BATCHES if epoch == start else 0
        active = accelerator.skip_first_batches(loader, skipped) if skipped else loader
        for batch in active:
            with accelerator.accumulate(model):
                loss = model(batch["inputs"], batch["labels"])
                accelerator.backward(loss)
                task.note(given, number, batch["indices"], loss)
                task.reach(given, number)
                optimizer.step()
                if given.schedule == "step":
                    scheduler.step()
                optimizer.zero_grad()
            if ema is not None:
                ema.update_parameters(bare)
            number += 1
            every = given.every_steps * given.accumulate
            if given.by == "steps" and number % every == 0:
                accelerator.save_state(str(saved / f"step_{number}"))
        if given.schedule == "epoch":
            scheduler.step()
        if given.by == "epochs":
            accelerator.save_state(str(saved / f"step_{number}"))
    task.finish(given, bare, plain, ema)
