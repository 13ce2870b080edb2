"""fastai: learner.save with and without the optimizer, and learner.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, RMSProp, ranger
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    FillMissing,
    Normalize,
    TabularDataLoaders,
    tabular_learner,
)
from fastai.vision.all import DataBlock, ImageBlock, Resize, aug_transforms, get_image_files
from PIL import Image

from frameworks.expected import expecting
from frameworks.networks import SmallNet, pictures

NAME = "FastAI"


def write(folder: Path) -> None:
    for name, optimizer, family in (
        ("adam", Adam, "Adam"),
        ("sgd", SGD, "SGD"),
        ("rmsprop", RMSProp, "RMSProp"),
        ("ranger", ranger, "RAdam"),
    ):
        learner = _learner(folder, optimizer)
        learner.save(f"{name}_with_optimizer")
        learner.save(f"{name}_model_only", with_opt=False)
        expecting(
            folder / "models" / f"{name}_with_optimizer.pth",
            role="checkpoint",
            framework=NAME,
            optimizers=[family],
            state_dicts={"model": "model"},
        )
        expecting(
            folder / "models" / f"{name}_model_only.pth",
            role="state_dict",
            framework=None,
            state_dicts={"": "model"},
        )
    _vision(folder)
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


def _label(path: Path) -> str:
    return path.name[0]


def _vision(folder: Path) -> None:
    pictures_folder = Path("pictures").absolute()
    pictures_folder.mkdir()
    for number in range(8):
        picture = Image.new("RGB", (16, 16), (30 * number, 0, 0))
        picture.save(pictures_folder / f"{'ab'[number % 2]}{number}.png")
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        get_y=_label,
        item_tfms=Resize(16),
        batch_tfms=aug_transforms(size=16),
    )
    loaders = block.dataloaders(pictures_folder, bs=4, num_workers=0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )
    learner = Learner(loaders, network, metrics=accuracy, path=folder)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1)
    learner.export(expecting(folder / "export.pkl", framework=NAME, verdict="needs-trust"))


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
