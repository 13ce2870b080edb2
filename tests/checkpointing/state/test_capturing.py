"""`capture` and `restore` are inverse of each other, bit for bit."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from torchkeep.checkpointing.state.capturing import capture, restore
from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import CheckpointProblem

SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 2, 2]),
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=20, cycle_momentum=False
    ),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.StepLR(o, 2)],
        [2],
    ),
}


class Net(nn.Module):
    """A model with everything that a state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("grown", None, persistent=False)
        self.count = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.cache += 1
        return self.head(self.layers(inputs))

    def get_extra_state(self) -> dict:
        return {"count": self.count}

    def set_extra_state(self, state: dict) -> None:
        self.count = state["count"]


def train(model, optimizer, scheduler=None, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.item())
        elif scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize(
    "kind", ["SGD", "AdamW", "Adagrad", "RMSprop", "NAdam", "Adafactor", "Rprop", "LBFGS"]
)
def test_training_goes_on_bit_for_bit(kind, schedule):
    torch.manual_seed(0)
    options = {"momentum": 0.9} if kind == "SGD" else {}

    def build():
        model = Net()
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
        return model, optimizer, SCHEDULERS[schedule](optimizer)

    model, optimizer, scheduler = build()
    run = closure_train if kind == "LBFGS" else train
    run(model, optimizer, scheduler)
    state = capture({"model": model, "optimizer": optimizer, "scheduler": scheduler})
    run(model, optimizer, scheduler)
    expected = capture({"model": model, "optimizer": optimizer, "scheduler": scheduler})

    other, other_optimizer, other_scheduler = build()
    restore(state, {"model": other, "optimizer": other_optimizer, "scheduler": other_scheduler})
    again = capture({"model": other, "optimizer": other_optimizer, "scheduler": other_scheduler})
    assert fingerprint(again) == fingerprint(state)
    run(other, other_optimizer, other_scheduler)
    found = capture({"model": other, "optimizer": other_optimizer, "scheduler": other_scheduler})
    assert fingerprint(found) == fingerprint(expected)
    assert found["inexact"] == []


def closure_train(model, optimizer, scheduler):
    inputs = torch.randn(8, 4)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    model.eval()
    loss = optimizer.step(closure)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss.item())
    else:
        scheduler.step()


def test_moments_keep_their_own_dtype():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moment = torch.full((3,), 1 / 3, dtype=torch.float32)
    optimizer.state[parameter]["exp_avg"] = moment
    state = capture({"optimizer": optimizer})

    plain = torch.optim.Adam([nn.Parameter(torch.ones(3, dtype=torch.bfloat16))])
    plain.load_state_dict(optimizer.state_dict())
    assert next(iter(plain.state.values()))["exp_avg"].dtype == torch.bfloat16  # the trap

    other = torch.optim.Adam([nn.Parameter(torch.ones(3, dtype=torch.bfloat16))])
    restore(state, {"optimizer": other})
    back = next(iter(other.state.values()))["exp_avg"]
    assert back.dtype == torch.float32
    assert torch.equal(back, moment)


def test_moments_keep_the_memory_format_of_their_parameter():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = capture({"optimizer": optimizer})
    restore(state, {"optimizer": optimizer})
    moment = optimizer.state[model.weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=torch.channels_last)


def test_what_a_state_dict_leaves_out_is_restored():
    model = Net()
    model.layers[1].eval()
    model.head.weight.requires_grad_(False)
    model(torch.randn(4, 4))
    model.grown = torch.arange(3.0)
    other = Net()
    restore(capture({"model": model}), {"model": other})
    assert other.cache.tolist() == [1.0, 1.0]
    assert other.grown.tolist() == [0.0, 1.0, 2.0]
    assert other.count == 1
    assert not other.layers[1].training
    assert other.layers[2].training
    assert not other.head.weight.requires_grad
    assert other.head.bias.requires_grad


def test_a_wrapped_model_is_captured_under_its_own_names():
    model = Net()
    state = capture({"model": nn.DataParallel(model)})
    assert "head.weight" in state["objects"]["model"]["state"]["state_dict"]
    other = Net()
    restore(state, {"model": other})
    assert fingerprint(capture({"model": other})) == fingerprint(capture({"model": model}))
    restore(state, {"model": nn.DataParallel(Net())})


def test_averaged_models_and_scalers_are_restored():
    model = Net()
    ema = torch.optim.swa_utils.AveragedModel(model)
    ema.update_parameters(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    state = capture({"ema": ema, "scaler": scaler})
    other = torch.optim.swa_utils.AveragedModel(Net())
    other_scaler = torch.amp.GradScaler("cpu")
    restore(state, {"ema": other, "scaler": other_scaler})
    assert other.n_averaged.item() == 1
    assert other_scaler.get_scale() == 8.0
    assert fingerprint(capture({"ema": other})["objects"]) == fingerprint(
        capture({"ema": ema})["objects"]
    )


def test_every_global_generator_is_put_back():
    state = capture({})
    drawn = random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(1)
    restore(state, {})
    again = random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(1)
    assert drawn == again


def test_generators_are_left_alone_on_request():
    state = capture({})
    drawn = torch.rand(1)
    restore(state, {}, rng=False)
    assert torch.rand(1) != drawn


def test_private_generators_are_put_back():
    extra = {
        "torch": torch.Generator().manual_seed(1),
        "python": random.Random(2),
        "numpy": np.random.default_rng(3),
        "legacy": np.random.RandomState(4),
    }

    def draw():
        return (
            torch.rand(1, generator=extra["torch"]).item(),
            extra["python"].random(),
            extra["numpy"].random(),
            extra["legacy"].rand(),
        )

    state = capture({"extra": extra})
    drawn = draw()
    restore(state, {"extra": extra})
    assert draw() == drawn


def test_plain_values_are_put_back_into_the_containers_that_hold_them():
    history, best = [1, 2], {"loss": 0.5}
    extra = {"history": history, "best": best, "epoch": 3, "ema": nn.Linear(1, 1)}
    state = capture({"extra": extra})
    history.append(3)
    best["loss"] = 0.1
    extra["epoch"] = 9
    restore(state, {"extra": extra})
    assert extra["history"] is history
    assert history == [1, 2]
    assert extra["best"] is best
    assert best == {"loss": 0.5}
    assert extra["epoch"] == 3


def test_a_state_is_a_copy_that_training_does_not_touch():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    counts = {"seen": Counter(a=1)}
    train_linear(model, optimizer)
    state = capture({"model": model, "optimizer": optimizer, "extra": counts})
    before = fingerprint(state)
    train_linear(model, optimizer)
    counts["seen"]["a"] += 1
    assert fingerprint(state) == before
    restore(state, {"model": model, "optimizer": optimizer, "extra": counts})
    train_linear(model, optimizer)
    assert fingerprint(state) == before


def train_linear(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_what_cant_be_captured_is_named():
    class Stateful:
        def state_dict(self):
            return {"count": 1, "callback": lambda: None}

        def load_state_dict(self, state):
            self.count = state["count"]

    state = capture({"extra": {"metric": Stateful(), "file": object()}, "best": 3})
    assert state["inexact"] == [
        "extra.metric.state.callback is a builtins.function, which can't be kept as data",
        "extra.file is a builtins.object, which can't be kept as data",
        "best is a plain value, which can't be put back; pass it in a dict",
    ]
    metric = Stateful()
    restore(state, {"extra": {"metric": metric}})
    assert metric.count == 1


def test_a_state_is_not_encoded_only_to_see_that_it_can_be(monkeypatch):
    """It doubles the time that the training waits for a checkpoint."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    monkeypatch.setattr("torchkeep.checkpointing.state.capturing.encode", None)
    assert capture({"model": model, "optimizer": optimizer, "extra": {"a": 1}})["inexact"] == []


def test_another_model_is_refused_and_nothing_is_changed():
    state = capture({"model": nn.Linear(2, 3), "extra": {"history": [1]}})
    model, extra = nn.Linear(2, 4), {"history": [5]}
    before = fingerprint(capture({"model": model})["objects"])
    expected = (
        r"model: the checkpoint is of another model: weight was float32\[3, 2\] and is "
        r"float32\[4, 2\]; bias was float32\[3\] and is float32\[4\]\. Build the model as it was"
    )
    with pytest.raises(CheckpointProblem, match=expected):
        restore(state, {"extra": extra, "model": model})
    assert extra == {"history": [5]}
    assert fingerprint(capture({"model": model})["objects"]) == before


def test_missing_and_surplus_parameters_are_named():
    state = capture({"model": nn.Linear(2, 3)})
    with pytest.raises(CheckpointProblem, match=r"0\.weight is missing; 0\.bias is missing"):
        restore(state, {"model": nn.Sequential(nn.Linear(2, 3))})


def test_another_optimizer_is_refused():
    model = nn.Linear(2, 3)
    state = capture({"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    with pytest.raises(CheckpointProblem, match=r"groups of \[2\] parameters, .*of \[1\]"):
        restore(state, {"optimizer": torch.optim.SGD([model.weight], lr=0.1)})
    with pytest.raises(CheckpointProblem, match="parameters of other shapes"):
        restore(state, {"optimizer": torch.optim.SGD([model.bias, model.weight], lr=0.1)})


def test_an_object_of_another_kind_or_name_is_refused():
    state = capture({"model": nn.Linear(2, 3)})
    with pytest.raises(CheckpointProblem, match=r"has module, and this is torch\.Generator"):
        restore(state, {"model": torch.Generator()})
    with pytest.raises(CheckpointProblem, match="the checkpoint has no ema"):
        restore(state, {"ema": nn.Linear(2, 3)})


def test_objects_are_told_from_flags():
    generator = torch.Generator().manual_seed(1)
    state = capture({"rng": generator, "copy": [1, generator]}, rng=False)
    drawn = torch.rand(1, generator=generator)
    restore(state, {"rng": generator})
    assert torch.rand(1, generator=generator) == drawn
    assert list(state["objects"]) == ["rng", "copy"]


def test_an_optimizer_of_another_class_is_refused():
    """PyTorch takes the state, and fails in the next step with a KeyError."""
    model = nn.Linear(2, 3)
    state = capture({"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    with pytest.raises(CheckpointProblem, match="checkpoint is of SGD, and this run has Adam"):
        restore(state, {"optimizer": torch.optim.Adam(model.parameters())})


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_a_bare_bit_generator_of_numpy_comes_back(kind):
    generator = getattr(np.random, kind)(5)
    state = capture({"bits": generator})
    assert state["inexact"] == []
    expected = np.random.Generator(generator).random(5).tolist()
    restore(state, {"bits": generator})
    assert np.random.Generator(generator).random(5).tolist() == expected
