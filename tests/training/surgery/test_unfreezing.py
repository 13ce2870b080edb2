"""Unfreezing on a schedule, and a run that is resumed across it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import torchkeep
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import WrongArgument
from torchkeep.training.surgery import (
    check_schedule,
    freeze_all_but_head,
    parameter_groups,
    stages,
    unfreeze_at,
)

SCHEDULE = {1: 2, 3: ["layers.1"], 4: 4}
"""Of four stages the last two, another by its name, and all."""

NUM_EPOCHS = 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.1))
            for _ in range(3)
        ]
        self.layers = nn.Sequential(*blocks)
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.fc(self.layers(inputs))


SCHEDULERS = {
    "none": None,
    "exponential": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "warmup": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2),
            lr_scheduler.CosineAnnealingLR(optimizer, 20),
        ],
        milestones=[2],
    ),
}

RATES = {"lr": 0.05, "decay": 0.8, "weight_decay": 0.1}


class Run:
    """A run of five epochs of three steps, which may be stopped after a step."""

    def __init__(self, folder, scheduler="none", *, is_complete=False) -> None:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(12, 4, generator=generator)
        labels = torch.randint(0, 2, (12,), generator=generator)
        self.loader = DataLoader(TensorDataset(inputs, labels), batch_size=4, shuffle=True)
        self.folder, self.model = folder, Net()
        freeze_all_but_head(self.model)
        groups = parameter_groups(self.model, is_complete=is_complete, **RATES)
        self.optimizer = torch.optim.AdamW(groups)
        make = SCHEDULERS[scheduler]
        self.scheduler = make(self.optimizer) if make else None
        self.unmoved, self.moved = [], []

    def go(self, stop=None):
        told = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        options = {"every_steps": 1, "durable": False, "background": False}
        with torchkeep.Checkpointer(self.folder, **told, **options) as ckpt:
            for epoch in ckpt.epochs(NUM_EPOCHS):
                unfreeze_at(
                    self.model, epoch, SCHEDULE, self.optimizer, scheduler=self.scheduler, **RATES
                )
                self.model.train()
                for inputs, labels in ckpt.batches(self.loader):
                    self.step(epoch, inputs, labels)
                    ckpt.step()
                    if ckpt.num_steps == stop:
                        raise InterruptedError
        return self

    def step(self, epoch, inputs, labels):
        before = digests(self.model)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        after = digests(self.model)
        num_trained = {0: 1, 1: 2, 2: 2, 3: 3}.get(epoch, 4)
        parts = stages(self.model)
        for index, part in enumerate(parts):
            for name in (*part.parameters, *part.buffers):
                is_trained = index >= len(parts) - num_trained
                assert (before[name] != after[name]) == is_trained, (epoch, name)

    def state(self):
        return fingerprint([self.model.state_dict(), self.optimizer.state_dict()])


def digests(model):
    return {name: fingerprint(item) for name, item in model.state_dict().items()}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_frozen_rests_and_all_else_moves_across_resumes(tmp_path, scheduler):
    whole = Run(tmp_path / "whole", scheduler).go()
    for stop in (4, 7):
        with pytest.raises(InterruptedError):
            Run(tmp_path / f"{stop}", scheduler).go(stop)
        resumed = Run(tmp_path / f"{stop}", scheduler).go()
        assert resumed.state() == whole.state(), stop


def test_a_run_that_is_stopped_in_each_epoch_ends_the_same(tmp_path):
    whole = Run(tmp_path / "whole", "cosine").go()
    for stop in (2, 5, 8, 11, 14):
        with pytest.raises(InterruptedError):
            Run(tmp_path / "often", "cosine").go(stop)
    assert Run(tmp_path / "often", "cosine").go().state() == whole.state()


def test_an_optimizer_that_has_all_parameters_gains_none(tmp_path):
    whole = Run(tmp_path / "whole", "cosine", is_complete=True).go()
    assert len(whole.optimizer.param_groups) == 8
    with pytest.raises(InterruptedError):
        Run(tmp_path / "cut", "cosine", is_complete=True).go(8)
    assert Run(tmp_path / "cut", "cosine", is_complete=True).go().state() == whole.state()


def test_no_parameter_is_added_twice_and_all_end_in_the_optimizer(tmp_path):
    run = Run(tmp_path).go()
    inside = [id(item) for group in run.optimizer.param_groups for item in group["params"]]
    assert sorted(inside) == sorted(id(item) for item in run.model.parameters())
    names = [group["name"] for group in run.optimizer.param_groups]
    assert names == [
        "head",
        "head, no weight decay",
        "layers.2 (epoch 1)",
        "layers.2, no weight decay (epoch 1)",
        "layers.1 (epoch 3)",
        "layers.1, no weight decay (epoch 3)",
        "stem (epoch 4)",
        "stem, no weight decay (epoch 4)",
    ]
    assert unfreeze_at(run.model, 5, SCHEDULE, run.optimizer) == ()


def test_new_groups_begin_where_the_scheduler_has_come_to(tmp_path):
    run = Run(tmp_path, "exponential").go()
    for group in run.optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] * 0.9**15)


def test_added_groups_have_the_lowest_rate_and_the_default_decay_unless_told():
    model = Net()
    freeze_all_but_head(model)
    groups = parameter_groups(model, 0.5, head_lr=0.25)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.125)
    added = unfreeze_at(model, 0, {0: "layers.2"}, optimizer)
    assert added == tuple(
        f"layers.2.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    new = optimizer.param_groups[1:]
    assert [(group["lr"], group["weight_decay"]) for group in new] == [(0.25, 0.125), (0.25, 0.0)]


def test_a_scheduler_that_cant_learn_of_groups_is_refused_before_anything_is_added():
    model = Net()
    freeze_all_but_head(model)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.5))
    before = copy.deepcopy(optimizer.state_dict())
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=10)
    with pytest.raises(WrongArgument, match=r"OneCycleLR can't have .* is_complete=True"):
        unfreeze_at(model, 0, {0: 4}, optimizer, scheduler=scheduler)
    assert len(optimizer.param_groups) == len(before["param_groups"])


def test_a_schedule_is_looked_through_before_training():
    check_schedule(Net(), SCHEDULE)
    with pytest.raises(WrongArgument, match="from 0 to 4 is what this Net has, not 5"):
        check_schedule(Net(), {7: 5})
    with pytest.raises(WrongArgument, match="'body' is no module or parameter of this Net"):
        check_schedule(Net(), {7: "body"})
    with pytest.raises(WrongArgument, match="the schedule has an epoch -1; the first is 0"):
        check_schedule(Net(), {-1: 1})
