"""fastai: learner.save with and without the optimizer, and learner.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, accuracy
from fastai.optimizer import Adam, RMSProp, SGD, ranger
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize
from fastai.tabular.all import TabularDataLoaders, tabular_learner

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures

NAME = "FastAI"


def write(folder: Path) -> None:
    for name, optimizer in (("adam", Adam), ("sgd", SGD), ("rmsprop", RMSProp), ("ranger", ranger)):
        learner = _learner(folder, optimizer)
        learner.save(f"{name}_with_optimizer")
        learner.save(f"{name}_model_only", with_opt=False)
        expecting(
            folder / "models" / f"{name}_with_optimizer.pth",
            role="checkpoint",
            framework=NAME,
            state_dicts={"model": "model"},
        )
        expecting(
            folder / "models" / f"{name}_model_only.pth",
            role="state_dict",
            framework=None,
            state_dicts={"": "model"},
        )
    learner = _learner(folder, Adam)
    learner.export(expecting(folder / "export.pkl", framework=NAME, verdict="needs-trust"))
    _tabular(folder)


def _learner(folder: Path, optimizer: Any) -> Learner:
    images, labels = pictures()
    data = list(zip(images, labels, strict=True))
    loaders = DataLoaders(DataLoader(data, bs=4), DataLoader(data, bs=4))
    learner = Learner(
        loaders,
        SmallNet(),
        loss_func=torch.nn.CrossEntropyLoss(),
        opt_func=optimizer,
        metrics=accuracy,
        path=folder,
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    return learner


def _tabular(folder: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": ["x", "y"] * 10, "b": range(20), "c": ["n", "y"] * 10})
    loaders = TabularDataLoaders.from_df(
        frame,
        path=folder,
        procs=[Categorify, FillMissing, Normalize],
        cat_names=["a"],
        cont_names=["b"],
        y_names="c",
        y_block=CategoryBlock(),
        bs=4,
    )
    learner = tabular_learner(loaders, layers=[4])
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    path = expecting(folder / "tabular.pkl", framework=NAME, verdict="needs-trust")
    learner.export(path)
