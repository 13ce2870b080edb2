"""Every optimizer of torch.optim: alone, in a checkpoint, pickled whole; in both torch formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from frameworks.expected import expecting
from frameworks.networks import SmallNet, train

MAKERS: dict[str, tuple[str, Callable[[Any], optim.Optimizer]]] = {
    "adadelta": ("Adadelta", optim.Adadelta),
    "adafactor": ("Adafactor", optim.Adafactor),
    "adagrad": ("Adagrad", optim.Adagrad),
    "adam": ("Adam", optim.Adam),
    "adam_amsgrad": ("Adam", lambda p: optim.Adam(p, amsgrad=True, weight_decay=1e-4)),
    "adamw": ("AdamW", optim.AdamW),
    "adamw_no_decay": ("AdamW", lambda p: optim.AdamW(p, weight_decay=0.0)),
    "adamax": ("Adamax", optim.Adamax),
    "asgd": ("ASGD", optim.ASGD),
    "lbfgs": ("LBFGS", optim.LBFGS),
    "nadam": ("NAdam", optim.NAdam),
    "nadam_decoupled": ("NAdam", lambda p: optim.NAdam(p, decoupled_weight_decay=True)),
    "radam": ("RAdam", optim.RAdam),
    "rmsprop": ("RMSprop", optim.RMSprop),
    "rmsprop_centered": ("RMSprop", lambda p: optim.RMSprop(p, centered=True, momentum=0.9)),
    "rprop": ("Rprop", optim.Rprop),
    "sgd": ("SGD", lambda p: optim.SGD(p, lr=0.1)),
    "sgd_momentum": ("SGD", lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
}


def write(folder: Path) -> None:
    for name, (family, make) in MAKERS.items():
        model = SmallNet()
        optimizer = make(model.parameters())
        untrained = optimizer.state_dict()
        train(model, [optimizer])
        _save_all(folder, name, family, model, optimizer, untrained)
    _muon(folder)
    _sparse_adam(folder)
    _two_optimizers(folder)
    _named_parameters(folder)


def _save_all(
    folder: Path,
    name: str,
    family: str,
    model: nn.Module,
    optimizer: optim.Optimizer,
    untrained: dict[str, Any],
) -> None:
    for is_zip in (True, False):
        age = "zip" if is_zip else "legacy"
        facts = {"container": f"torch-{age}", "optimizers": [family], "framework": None}
        checkpoint = {
            "epoch": 3,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": 0.5,
        }
        path = expecting(
            folder / f"{name}_{age}.pt",
            role="checkpoint",
            verdict="data-only",
            state_dicts={"model_state_dict": "model"},
            **facts,
        )
        torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
        path = expecting(folder / f"{name}_untrained_{age}.pt", role="optimizer", **facts)
        torch.save(untrained, path, _use_new_zipfile_serialization=is_zip)
        path = expecting(folder / f"{name}_whole_{age}.pt", role="optimizer", **facts)
        torch.save(optimizer, path, _use_new_zipfile_serialization=is_zip)


def _muon(folder: Path) -> None:
    layer = nn.Linear(4, 4, bias=False)
    optimizer = optim.Muon(layer.parameters())
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    path = expecting(folder / "muon.pt", role="optimizer", optimizers=["Muon"])
    torch.save(optimizer.state_dict(), path)


def _sparse_adam(folder: Path) -> None:
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = optim.SparseAdam(list(table.parameters()))
    untrained = optimizer.state_dict()
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    path = expecting(folder / "sparse_adam.pt", role="optimizer", optimizers=["SparseAdam"])
    torch.save(optimizer.state_dict(), path)
    path = expecting(
        folder / "sparse_adam_untrained.pt", role="optimizer", optimizers=["SparseAdam"]
    )
    torch.save(untrained, path)


def _two_optimizers(folder: Path) -> None:
    model = SmallNet()
    sgd = optim.SGD(model.conv.parameters(), lr=0.1)
    adam = optim.Adam([{"params": model.bn.parameters()}, {"params": model.fc.parameters()}])
    train(model, [sgd, adam])
    path = expecting(
        folder / "list_of_two.pt",
        role="checkpoint",
        optimizers=["SGD", "Adam"],
        state_dicts={"net": "model"},
    )
    torch.save({"net": model.state_dict(), "optim": [sgd.state_dict(), adam.state_dict()]}, path)
    path = expecting(folder / "only_two.pt", role="optimizer", optimizers=["SGD", "Adam"])
    torch.save({"optim_a": sgd.state_dict(), "optim_b": adam.state_dict()}, path)


def _named_parameters(folder: Path) -> None:
    model = SmallNet()
    optimizer = optim.AdamW(model.named_parameters(), lr=torch.tensor(0.01))
    train(model, [optimizer])
    path = expecting(folder / "named.pt", role="optimizer", optimizers=["AdamW"])
    torch.save(optimizer.state_dict(), path)
