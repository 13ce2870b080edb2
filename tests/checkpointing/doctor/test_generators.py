"""A generator that nobody captures makes a checkpoint inexact, but only if it has moved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torchkeep.checkpointing import Checkpointer, list_checkpoints
from torchkeep.checkpointing.layout import read_manifest
from torchkeep.errors import InexactResume


class Noisy(Dataset):
    """Ten samples; each draws from a generator of its own if it is to."""

    def __init__(self, generator, draw) -> None:
        self.generator = generator
        self.draw = draw

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.draw is not None:
            self.draw(self.generator)
        return torch.ones(2)


GENERATORS = {
    "torch": (torch.Generator, lambda generator: torch.rand(1, generator=generator)),
    "numpy": (lambda: np.random.default_rng(0), lambda generator: generator.random()),
    "python": (lambda: random.Random(0), lambda generator: generator.random()),
}


def train(folder, dataset, *, stop_at: int = 99, num_workers: int = 0, **options) -> Checkpointer:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(dataset, 2, shuffle=True, num_workers=num_workers)
    options = {"every_steps": 1, "background": False, "durable": False} | options
    ckpt = Checkpointer(folder, model=model, optimizer=optimizer, **options)
    with ckpt:
        for _ in ckpt.epochs(2):
            for inputs in ckpt.batches(loader):
                if ckpt.num_steps == stop_at:
                    raise KeyboardInterrupt
                model(inputs).sum().backward()
                optimizer.step()
                ckpt.step()
    return ckpt


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
@pytest.mark.parametrize("kind", GENERATORS)
def test_one_that_has_moved_is_named_and_the_resume_refused(tmp_path, kind):
    make, draw = GENERATORS[kind]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Noisy(make(), draw), stop_at=2)
    with pytest.raises(InexactResume, match=r"loader\.dataset\.generator.* is not captured"):
        train(tmp_path, Noisy(make(), draw))
    assert train(tmp_path, Noisy(make(), draw), allow_inexact=True).inexact


@pytest.mark.parametrize("kind", GENERATORS)
def test_one_that_stands_still_is_only_in_the_inventory(tmp_path, kind):
    make, _ = GENERATORS[kind]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Noisy(make(), None), stop_at=2)
    (found, *_) = read_manifest(list_checkpoints(tmp_path)[-1].path)["inventory"]
    assert (found["rule"], found["place"]) == ("private-generator", "loader.dataset.generator")
    assert train(tmp_path, Noisy(make(), None)).resumed_from.step == 2


def test_one_that_is_captured_is_neither(tmp_path):
    def run(**options) -> Checkpointer:
        make, draw = GENERATORS["torch"]
        generator = make()
        return train(tmp_path, Noisy(generator, draw), extra={"noise": generator}, **options)

    with pytest.raises(KeyboardInterrupt):
        run(stop_at=2)
    assert read_manifest(list_checkpoints(tmp_path)[-1].path)["inventory"] == []
    assert run().resumed_from.step == 2


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
def test_a_workers_copy_counts_until_the_epoch_ends(tmp_path):
    make, draw = GENERATORS["torch"]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Noisy(make(), draw), stop_at=2, num_workers=1)
    with pytest.raises(InexactResume, match="is not captured"):
        train(tmp_path, Noisy(make(), draw), num_workers=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", Noisy(make(), draw), stop_at=5, num_workers=1, every_steps=None)
    assert train(tmp_path / "b", Noisy(make(), draw), num_workers=1).resumed_from.step == 5


def test_the_systems_generator_in_a_data_set_is_named_and_breaks_nothing(tmp_path):
    run = train(tmp_path, Noisy(random.SystemRandom(), lambda generator: generator.random()))
    manifest = read_manifest(list_checkpoints(tmp_path)[-1].path)
    assert any("system's generator" in item["advice"] for item in manifest["inventory"])
    del run
