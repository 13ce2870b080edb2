"""PyTorch Ignite: its checkpoint handler, its state of an engine, its EMA."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, EMAHandler, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures


def write(folder: Path) -> None:
    warnings.simplefilter("ignore")
    net = SmallNet()
    adam = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(adam, 1)
    trainer = create_supervised_trainer(net, adam, torch.nn.CrossEntropyLoss())
    ema = EMAHandler(net)
    ema.attach(trainer)
    saved = {
        "model": net,
        "optimizer": adam,
        "trainer": trainer,
        "scheduler": schedule,
        "ema": ema.ema_model,
    }
    saver = DiskSaver(str(folder / "full"), create_dir=True, require_empty=False)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, Checkpoint(saved, saver, n_saved=2))
    alone = ModelCheckpoint(str(folder / "alone"), "net", n_saved=1, require_empty=False)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, alone, {"model": net})
    trainer.run(DataLoader(TensorDataset(*pictures()), batch_size=4), max_epochs=2)
    for path in (folder / "full").iterdir():
        expecting(
            path,
            role="checkpoint",
            framework="Ignite",
            optimizers=["Adam"],
            schedulers=["scheduler"],
            state_dicts={"model": "model", "ema": "ema"},
        )
    for path in (folder / "alone").iterdir():
        expecting(path, role="state_dict", framework=None, state_dicts={"": "model"})
