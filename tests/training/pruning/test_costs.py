"""Costs are counted, and times are compared in turns."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.training.pruning import compare_latency, cost_of


class Sleeping(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, inputs):
        time.sleep(self.seconds)
        return inputs


def test_costs_are_those_of_the_formulas():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    cost = cost_of(model, torch.ones(2, 3, 4, 4))
    assert cost.num_parameters == 3 * 8 * 9 + 8 + 8 + 8 + 32 * 5 + 5
    assert cost.nbytes == 4 * (cost.num_parameters + 16) + 8
    assert cost.num_macs == 2 * (8 * 4 * 27 + 32 * 5)
    assert model.training


def test_a_tied_tensor_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    cost = cost_of(model, torch.ones(1, 4))
    assert (cost.num_parameters, cost.nbytes, cost.num_macs) == (16, 64, 32)


def test_attention_is_counted_where_pytorch_would_take_a_short_cut():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    cost = cost_of(layer, torch.ones(1, 4, 8))
    linear = 4 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16)
    assert cost.num_macs == linear + 2 * (4 * 4 * 8)


class Token(nn.Module):
    """It gives a module a view of a parameter, as CaiT does."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 4))
        self.end = nn.Linear(4, 3)

    def forward(self, rows):
        return self.end(self.token.expand(len(rows), -1)) + rows


def test_a_view_of_a_parameter_may_be_passed_on():
    model = Token()
    model.end.bias.requires_grad_(False)
    assert cost_of(model, torch.ones(2, 3)).num_macs == 2 * 4 * 3
    assert [item.requires_grad for item in model.parameters()] == [True, True, False]


def test_the_slower_one_takes_more_time():
    found = compare_latency(Sleeping(0.02), Sleeping(0.001), torch.ones(1), runs=3)
    assert found.ratio < 1 < 1 / found.ratio
    assert found.num_runs == 3


def test_no_runs_tell_nothing():
    with pytest.raises(WrongArgument, match="a latency needs at least one run, not 0"):
        compare_latency(nn.Identity(), nn.Identity(), torch.ones(1), runs=0)
