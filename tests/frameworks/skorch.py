"""skorch: a net pickled whole, its separate parts, its checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EpochScoring, LRScheduler

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures


def write(folder: Path) -> None:
    images, labels = pictures(20)
    net = NeuralNetClassifier(
        SmallNet,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        max_epochs=2,
        verbose=0,
        callbacks=[
            ("checkpoint", Checkpoint(dirname=str(folder / "checkpoint"), monitor=None)),
            ("scores", EpochScoring("accuracy")),
            ("schedule", LRScheduler("StepLR", step_size=1)),
        ],
    )
    net.fit(images.numpy(), labels.numpy())
    expecting(folder / "checkpoint" / "params.pt", role="state_dict", state_dicts={"": "model"})
    expecting(folder / "checkpoint" / "optimizer.pt", role="optimizer", optimizers=["Adam"])
    net.save_params(
        f_params=str(expecting(folder / "params.pt", role="state_dict", framework=None)),
        f_optimizer=str(expecting(folder / "optimizer.pt", role="optimizer", optimizers=["Adam"])),
    )
    net.save_params(
        f_params=str(expecting(folder / "params.safetensors", container="safetensors")),
        use_safetensors=True,
    )
    facts = {"framework": "skorch", "verdict": "needs-trust"}
    expecting(folder / "net.pkl", container="pickle", **facts).write_bytes(pickle.dumps(net))
    torch.save(net, expecting(folder / "net.pt", **facts))
