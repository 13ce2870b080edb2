"""outputs.py: a model is run without a trace, its output is named, and differences are measured."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from torchkeep.outputs import (
    ATOL,
    OutputDifference,
    as_arguments,
    default_rtol,
    difference,
    generators_kept,
    named_tensors,
    place_of,
    run,
)

# --- Running -----------------------------------------------------------------------------------


def test_a_model_is_run_in_evaluation_mode_without_gradients_and_put_back() -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = Watched(2, 2)
    outputs = run(model, (torch.ones(1, 2),), {})
    assert seen == [(False, False)]
    assert model.training
    assert torch.is_grad_enabled()
    assert outputs.keys() == {""}


class Greedy(nn.Module):
    """Writes into its input, and draws random numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(torch.rand(3))


def test_inputs_are_left_alone() -> None:
    given = torch.zeros(3)
    assert run(Greedy(), (given,), {})[""].any()
    assert run(Greedy(), (), {"x": given}, preprocess=lambda x: x.add_(1))[""].any()
    assert not given.any()


def test_generators_of_random_numbers_can_be_put_back() -> None:
    model, state = Greedy(), torch.get_rng_state()
    with generators_kept(model):
        first, second = (run(model, (torch.zeros(3),), {})[""] for _ in range(2))
        assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_around_the_call_does_not_reach_the_model() -> None:
    model = nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model, (torch.ones(1, 2),), {})[""].dtype == torch.float32


def test_inputs_of_the_recorded_type_are_cast_to_that_of_the_model() -> None:
    class Types(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: torch.Tensor, half: torch.Tensor, ids: list[torch.Tensor]) -> Any:
            return {"x": x, "half": half, "ids": ids}

    given = (torch.ones(1), torch.ones(1).half(), [torch.ones(1, dtype=torch.int64)])
    found = run(Types(), given, {}, cast_from=torch.float32)
    assert [tensor.dtype for tensor in found.values()] == [
        torch.float64,
        torch.float16,
        torch.int64,
    ]


@pytest.mark.parametrize(
    ("made", "arguments"),
    [(1, ((1,), {})), ((1, 2), ((1, 2), {})), ({"a": 1}, ((), {"a": 1})), ([1], (([1],), {}))],
)
def test_what_preprocessing_makes_is_what_the_model_is_called_with(
    made: Any, arguments: Any
) -> None:
    assert as_arguments(made) == arguments


def test_a_model_without_tensors_is_on_the_processor() -> None:
    assert place_of(nn.ReLU()) == (torch.device("cpu"), torch.float32)
    assert place_of(nn.Linear(1, 1).half()) == (torch.device("cpu"), torch.float16)


# --- Names -------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "logits aux")  # torchvision's are like this


@dataclass
class Output:
    loss: float | None
    hidden: tuple[torch.Tensor, ...]


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (ONE, [""]),
        ((ONE, [ONE, ONE]), ["0", "1.0", "1.1"]),
        (OrderedDict(out=ONE, aux={"x": ONE}), ["out", "aux.x"]),
        (Pair(ONE, None), ["logits"]),
        (Output(0.5, (ONE,)), ["loss", "hidden.0"]),
        ([{"boxes": ONE, "name": "cat"}], ["0.boxes"]),
        (None, []),
        ("text", []),
    ],
)
def test_tensors_are_named_by_where_they_stand(output: Any, names: list[str]) -> None:
    assert [name for name, _ in named_tensors(output)] == names


# --- Differences -------------------------------------------------------------------------------


def compare(one: torch.Tensor, other: torch.Tensor | None, rtol: float = 0.1) -> OutputDifference:
    return difference(1, "x", one, other, rtol=rtol, atol=0.0)


def test_a_difference_is_measured_by_the_largest_value() -> None:
    found = compare(torch.tensor([0.0, 10.0]), torch.tensor([0.5, 10.0]))
    assert found.largest_absolute == 0.5
    assert found.largest_relative == pytest.approx(0.05)
    assert found.allowed == pytest.approx(1.0)
    assert found.is_close
    assert not compare(torch.tensor([0.0, 10.0]), torch.tensor([1.5, 10.0])).is_close


def test_integers_and_truths_must_be_the_same() -> None:
    assert compare(torch.tensor([1, 100]), torch.tensor([1, 100])).is_close
    assert not compare(torch.tensor([1, 100]), torch.tensor([1, 101])).is_close
    assert not compare(torch.tensor([True]), torch.tensor([False])).is_close


def test_what_is_infinite_or_no_number_must_stay_so() -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    assert compare(odd, odd.clone()).largest_absolute == 0.0
    assert compare(odd, odd.clone()).allowed == pytest.approx(0.1)
    for place in range(4):
        other = odd.clone()
        other[place] = torch.nan if place else 1.0
        assert compare(odd, other).largest_absolute == torch.inf
        assert not compare(odd, other).is_close


def test_another_shape_and_a_missing_tensor_are_never_close() -> None:
    found = compare(torch.ones(2, 3), torch.ones(2, 4), rtol=1e9)
    assert (found.expected, found.found) == ("float32 [2, 3]", "float32 [2, 4]")
    assert not found.is_close
    assert compare(torch.ones(1), None, rtol=1e9).found == ""
    assert not compare(torch.ones(1), None, rtol=1e9).is_close


def test_complex_numbers_and_empty_tensors_are_compared() -> None:
    assert compare(torch.tensor([1 + 1j]), torch.tensor([1 + 1.01j])).is_close
    assert not compare(torch.tensor([1 + 1j]), torch.tensor([1 - 1j])).is_close
    assert compare(torch.empty(0, 3), torch.empty(0, 3)).is_close


def test_a_zero_tensor_has_no_room_but_the_absolute_one() -> None:
    zero = torch.zeros(2)
    assert compare(zero, zero).largest_relative == 0.0
    assert compare(zero, zero + 1e-9).largest_relative == torch.inf
    assert not compare(zero, zero + 1e-9).is_close
    assert difference(1, "", zero, zero + ATOL / 2, rtol=0.0, atol=ATOL).is_close


def test_predictions_are_compared_along_the_classes() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert compare(one, other).argmax_agreement == 0.5
    maps = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], dim=1)
    assert compare(maps, maps.flip(1)).argmax_agreement == 0.0
    assert compare(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3)).argmax_agreement is None
    assert compare(torch.ones(3), torch.ones(3)).argmax_agreement is None


def test_the_coarsest_type_decides_and_another_device_is_as_coarse_as_tf32() -> None:
    assert default_rtol(torch.float64, on_cpu=True) == 1e-12
    assert default_rtol(torch.float32, torch.float64, on_cpu=True) == 2e-5
    assert default_rtol(torch.float32, torch.bfloat16, on_cpu=True) == 5e-2
    assert default_rtol(torch.float32, on_cpu=False) == default_rtol(torch.float16, on_cpu=True)
    assert default_rtol(torch.float64, on_cpu=False) == 1e-12
    assert default_rtol(torch.int64, on_cpu=False) == 0.0


# --- What is allowed is what is measured -------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, wider in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.GELU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model(torch.randn(8, 3, 32, 32))  # BatchNorm has seen something
    return model


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_other_threads_and_layouts_stay_within_the_tolerance_and_another_eps_does_not(
    threads,
) -> None:
    model, images = network(), torch.randn(2, 3, 32, 32)

    def off(other: nn.Module, inputs: torch.Tensor) -> OutputDifference:
        rtol = default_rtol(torch.float32, on_cpu=True)
        return difference(1, "", expected, run(other, (inputs,), {})[""], rtol=rtol, atol=ATOL)

    threads(2)
    expected = run(model, (images,), {})[""]
    threads(1)
    assert off(model, images).is_close
    model.to(memory_format=torch.channels_last)
    assert off(model, images.to(memory_format=torch.channels_last)).is_close
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    assert not off(model, images).is_close
