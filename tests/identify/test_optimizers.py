"""Optimizers are named after the class that wrote them, or after none; the same for the rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import torchkeep
from torchkeep.contents import Global, Object, Storage, TensorEntry, Value
from torchkeep.errors import LimitReached
from torchkeep.identify import Inspection
from torchkeep.identify.optimizers import (
    is_optimizer,
    is_rng_state,
    is_scaler,
    is_scheduler,
    optimizer,
)
from torchkeep.identify.tree import Budget

Save = Callable[[Any], Inspection]
TENSOR = TensorEntry("float32", (2, 2), (2, 1), Storage("0", 16, 0))
ADAM = "lr betas eps weight_decay amsgrad"
MOMENTS = "step exp_avg exp_avg_sq"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(value: Any) -> Inspection:
        torch.save(value, tmp_path / "file.pt")
        return torchkeep.inspect(tmp_path / "file.pt")

    return write


def state_of(options: str, slots: str = "") -> dict[str, Value]:
    """Return an optimizer's state with these options, and these slots for its one parameter."""
    state = {0: dict.fromkeys(slots.split(), TENSOR)} if slots else {}
    group = {**dict.fromkeys(options.split(), 0.5), "params": [0]}
    return {"state": state, "param_groups": [group]}


def family(value: Value) -> str | None:
    assert is_optimizer(value)
    return optimizer("", value, Budget(10_000, 100)).family


ALL_OF_TORCH = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and name != "Optimizer"
)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", ALL_OF_TORCH)
def test_every_optimizer_of_torch_is_named(save: Save, name: str, trained: bool) -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    made = getattr(torch.optim, name)([weight], **({"momentum": 0.9} if name == "SGD" else {}))
    if trained:
        weight.grad = torch.ones(3, 3)
        if name == "SparseAdam":
            weight.grad = weight.grad.to_sparse()
        made.step(lambda: torch.tensor(1.0))
    (found,) = save(made.state_dict()).optimizers
    assert found.family == name
    assert found.num_states == int(trained or name == "Adagrad")  # which begins with a state
    assert found.param_groups[0]["num_params"] == 1
    (whole,) = save({"optim": made}).optimizers
    assert (whole.name, whole.family) == ("optim", name)


@pytest.mark.parametrize(
    ("name", "options", "slots"),
    [
        # The options in the order in which PyTorch 1.12 to 2.5 wrote them.
        ("Adam", f"{ADAM} maximize foreach capturable differentiable fused", MOMENTS),
        ("AdamW", f"{ADAM} foreach maximize capturable differentiable fused", MOMENTS),
        ("AdamW", f"{ADAM} foreach maximize capturable", ""),
        ("Adam or AdamW", f"{ADAM} maximize", MOMENTS),
        ("Adam or AdamW", ADAM, MOMENTS + " max_exp_avg_sq"),
        ("Adam or AdamW", ADAM, ""),
        ("Adam or RAdam", "lr betas eps weight_decay initial_lr", MOMENTS),
        ("AdamW", "lr betas eps weight_decay correct_bias", MOMENTS),
        ("Adam or AdamW", "lr bias_correction betas eps weight_decay", MOMENTS),
        ("Adamax", "lr betas eps weight_decay", "step exp_avg exp_inf"),
        ("RAdam", "lr betas eps weight_decay foreach differentiable", MOMENTS),
        ("NAdam", "lr betas eps weight_decay schedule_decay", MOMENTS + " m_schedule"),
        ("SGD", "lr momentum dampening weight_decay nesterov", "momentum_buffer"),
        ("Lion", "lr betas weight_decay", "exp_avg"),
        ("Lion", "lr betas weight_decay caution foreach maximize", "exp_avg"),
        ("Adafactor", "lr eps clip_threshold scale_parameter relative_step", "step RMS"),
        ("Lamb", "lr betas eps grad_averaging max_grad_norm trust_clip", "exp_avg exp_avg_sq"),
        ("NovoGrad", "lr betas eps amsgrad grad_averaging", MOMENTS),
        ("AdaBelief", f"{ADAM} rectify", "step exp_avg exp_avg_var"),
        ("AdamP", "lr betas eps delta wd_ratio nesterov", MOMENTS),
        ("SGDP", "lr momentum dampening nesterov eps delta wd_ratio", "momentum"),
        ("LARS", "lr momentum dampening nesterov trust_coeff", "momentum_buffer"),
        ("RMSpropTF", "lr alpha centered momentum lr_in_momentum", "square_avg"),
        ("Prodigy", "lr betas beta3 d d0 d_coef", MOMENTS + " s p0"),
        ("DAdaptSGD", "lr momentum d k numerator_weighted g0_norm fsdp_in_use", "z s x0"),
        ("DAdaptAdaGrad", "lr momentum d k gsq_weighted sksq_weighted skl1", "alphak sk x0"),
        ("AdamWScheduleFree", "lr betas r k scheduled_lr weight_lr_power", "z exp_avg_sq"),
        ("Adam or a relative of bitsandbytes", "lr betas eps weight_decay", "state1 state2"),
        ("an optimizer of bitsandbytes", "lr betas eps weight_decay", "state1 qmap1"),
        (None, "lr betas eps weight_decay nothing_known", MOMENTS),
        (None, "lr betas weight_decay", "pbar exp_avg"),
        (None, "lr betas weight_decay", "exp_avg exp_avg_sq"),
        (None, "lr", ""),
        (None, f"{ADAM} phase nesterov", MOMENTS + " exp_avg2"),
    ],
)
def test_a_family_is_named_by_its_own_options_and_slots_or_not_at_all(
    name: str | None, options: str, slots: str
) -> None:
    assert family(state_of(options, slots)) == name


def test_slots_of_any_parameter_count() -> None:
    value = state_of("lr betas eps weight_decay", MOMENTS)
    value["state"][1] = {"step": 1, "exp_avg": TENSOR, "exp_inf": TENSOR}
    assert family(value) is None


def test_newer_adams_say_which_they_are() -> None:
    value = state_of(f"{ADAM} maximize foreach capturable", MOMENTS)
    value["param_groups"][0]["decoupled_weight_decay"] = True
    assert family(value) == "AdamW"


def test_a_fastai_optimizer_has_hyper_parameters_in_place_of_groups() -> None:
    hypers: Value = [{"wd": 0.01, "lr": 0.1, "mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5}]
    slots = [{"step": 3, "grad_avg": TENSOR, "sqr_avg": TENSOR}, {"force_train": True}]
    value = {"state": slots, "hypers": hypers}
    found = optimizer("opt", value, Budget(1_000, 100))
    assert (found.family, found.num_states, found.nbytes) == ("Adam", 2, 16)
    assert found.param_groups == (hypers[0],)
    of_its_own_class = Object(Global("fastcore.foundation", "L"), (), state={"items": hypers})
    assert family({"state": slots, "hypers": of_its_own_class}) == "Adam"
    hypers[0]["beta"] = 0.0
    assert family({"state": slots, "hypers": hypers}) == "RAdam"
    del hypers[0]["beta"]
    assert family({"state": [{"sqr_avg": TENSOR}], "hypers": hypers}) == "RMSProp"
    assert family({"state": [{"do_wd": False}], "hypers": [{"wd": 0, "mom": 0.9}]}) == "SGD"
    assert not is_optimizer({"state": slots, "hypers": [1]})
    assert not is_optimizer({"state": slots, "hypers": None})


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"state": {}, "param_groups": [{"lr": 1}]},
        {"state": [], "param_groups": []},
        {"param_groups": []},
        {"state": {}, "param_groups": 3},
        [1],
    ],
)
def test_other_tables_are_no_optimizers(value: Value) -> None:
    assert not is_optimizer(value)


def test_groups_that_stand_in_many_places_cost_what_they_unfold_to() -> None:
    group = {**{f"option{i}": i for i in range(1_000)}, "params": []}
    value = {"state": {}, "param_groups": [group] * 1_000}
    with pytest.raises(LimitReached, match="far more places than it has bytes"):
        optimizer("", value, Budget(20_000, 100))


SGD = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "constant": lambda: lr_scheduler.ConstantLR(SGD),
    "cosine": lambda: lr_scheduler.CosineAnnealingLR(SGD, 3),
    "restarts": lambda: lr_scheduler.CosineAnnealingWarmRestarts(SGD, 3),
    "cyclic": lambda: lr_scheduler.CyclicLR(SGD, 0.1, 0.2),
    "exponential": lambda: lr_scheduler.ExponentialLR(SGD, 0.9),
    "lambda": lambda: lr_scheduler.LambdaLR(SGD, lambda epoch: 0.9**epoch),
    "linear": lambda: lr_scheduler.LinearLR(SGD),
    "multi_step": lambda: lr_scheduler.MultiStepLR(SGD, [1, 2]),
    "multiplicative": lambda: lr_scheduler.MultiplicativeLR(SGD, lambda _: 0.9),
    "one_cycle": lambda: lr_scheduler.OneCycleLR(SGD, 0.1, total_steps=3),
    "plateau": lambda: lr_scheduler.ReduceLROnPlateau(SGD),
    "polynomial": lambda: lr_scheduler.PolynomialLR(SGD),
    "step": lambda: lr_scheduler.StepLR(SGD, 3),
    "sequential": lambda: lr_scheduler.SequentialLR(
        SGD, [lr_scheduler.ConstantLR(SGD), lr_scheduler.StepLR(SGD, 3)], [1]
    ),
    "chained": lambda: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(SGD)]),
    "swa": lambda: torch.optim.swa_utils.SWALR(SGD, 0.1),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_every_scheduler_of_torch_is_found_once(save: Save, name: str) -> None:
    found = save({"epoch": 1, "scheduler": SCHEDULERS[name]().state_dict()})
    assert found.schedulers == ("scheduler",)
    assert found.optimizers == ()


def test_a_whole_scheduler_is_found_and_not_the_optimizer_in_it(save: Save) -> None:
    found = save({"scheduler": lr_scheduler.StepLR(SGD, 3)})
    assert (found.schedulers, found.optimizers) == (("scheduler",), ())


@pytest.mark.parametrize(
    "keys",
    [
        "step_size gamma base_lrs last_epoch",  # PyTorch 0.4
        "factor patience best num_bad_epochs last_epoch",
        "param_group_field base_values update_groups",  # timm
        "begin end base_values last_step",  # mmengine
        "last_batch_iteration",  # DeepSpeed
        "max_lr num_steps lr_decay_style",  # Megatron-LM
    ],
)
def test_other_schedulers_are_found_by_their_keys(keys: str) -> None:
    table = dict.fromkeys(keys.split(), 1)
    assert is_scheduler(table)
    assert is_scheduler(Object(Global("project", "Schedule"), (), state=table))


@pytest.mark.parametrize("value", [{"last_epoch": 3}, {"base_lrs": [1]}, {}, [1], 3])
def test_other_values_are_no_schedulers(value: Value) -> None:
    assert not is_scheduler(value)


def test_scalers_are_found_state_or_whole(save: Save) -> None:
    scaler = torch.amp.GradScaler("cpu")
    off = torch.amp.GradScaler("cpu", enabled=False)
    found = save({"scaler": scaler.state_dict(), "whole": scaler, "off": off.state_dict()})
    assert found.scalers == ("scaler", "whole")
    assert is_scaler({"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 0}})  # apex
    assert not is_scaler({"scale": 2.0})


def test_random_states_are_found_by_their_form_whatever_they_are_called(save: Save) -> None:
    states = {
        "torch": torch.get_rng_state(),
        "sampler": torch.Generator().get_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "bits": np.random.default_rng(0).bit_generator.state,
        "generator": np.random.default_rng(0),
        "old_generator": np.random.RandomState(0),
        "python_generator": random.Random(0),
        "torch_cuda": [torch.zeros(16, dtype=torch.uint8)],
        "cuda": torch.zeros(16, dtype=torch.uint8),
    }
    assert save(states).rng == tuple(name for name in states if name != "torch_cuda")
    assert save({"rng": states}).rng == tuple(
        f"rng.{name}" for name in states if name != "torch_cuda"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cuda_rng_state", [TENSOR]),
        ("rng_state_all", (1, 2)),
        ("RNG", {"seed": 3, "offset": 4}),
        ("random_states", [{"a": 1}]),
        ("numpy_random_seed", (1, 2)),
    ],
)
def test_other_random_states_are_found_by_their_name(name: str, value: Value) -> None:
    assert is_rng_state(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rng", 3),
        ("rng", {}),
        ("weights", [TENSOR]),
        ("image", TensorEntry("uint8", (64, 79), (79, 1), Storage("0", 5056, 0))),
        ("bytes", TensorEntry("uint8", (5055,), (1,), Storage("0", 5055, 0))),
        ("pair", (3, (1, 2, 3))),
        ("model", Object(Global("randomly", "Random"), ())),
    ],
)
def test_other_values_are_no_random_states(name: str, value: Value) -> None:
    assert not is_rng_state(name, value)


@pytest.mark.parametrize("slots", [[], [{"step": 1, "exp_avg": torch.ones(9)}]])
def test_a_part_of_an_optimizer_that_zero_split_is_told_of(
    slots: list[Any], tmp_path: Path
) -> None:
    part: dict[str, Any] = {"single_partition_of_fp32_groups": [torch.ones(9)], "zero_stage": 1}
    if slots:
        part["base_optimizer_state"] = slots
    torch.save({"optimizer_state_dict": part, "ds_version": "0.16.0"}, tmp_path / "part.pt")
    found = torchkeep.inspect(tmp_path / "part.pt")
    assert [(item.name, item.num_states, item.nbytes) for item in found.optimizers] == [
        ("optimizer_state_dict", len(slots), 36 * (1 + len(slots)))
    ]
    assert found.role == "optimizer"
