"""The table tells what is trained, how fast, and what is asleep."""

from __future__ import annotations

import torch
from torch import nn

from torchkeep.networks import build
from torchkeep.training.optimizing import set_rates
from torchkeep.training.surgery import LayerRow, freeze, layer_table, parameter_groups


def made():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def test_the_table_has_a_row_for_what_has_tensors():
    model = made()
    freeze(model, except_=("3.weight",))
    optimizer = torch.optim.SGD(parameter_groups(model, 0.25))
    assert layer_table(model.train(), optimizer) == (
        LayerRow("0", "Linear", {"weight": (3, 4), "bias": (3,)}, 15, "no", (), "-", False),
        LayerRow("1", "BatchNorm1d", {"weight": (3,), "bias": (3,)}, 6, "no", (), "frozen", True),
        LayerRow("3", "Linear", {"weight": (2, 3), "bias": (2,)}, 8, "partly", (0.25,), "-", False),
    )


def test_statistics_that_follow_the_data_are_told_from_those_that_dont():
    model = made()
    assert layer_table(model.train())[1].statistics == "follow"
    assert layer_table(model.eval())[1].statistics == "frozen"
    assert not layer_table(model)[1].stays_in_eval


def test_two_groups_may_share_a_layer():
    model = nn.Sequential(nn.Linear(2, 2))
    groups = [{"params": [model[0].weight], "lr": 1.0}, {"params": [model[0].bias], "lr": 0.5}]
    [row] = layer_table(model, torch.optim.SGD(groups))
    assert (row.trainable, row.learning_rates) == ("yes", (1.0, 0.5))


def test_the_parameters_add_up_with_shared_ones_and_those_beside_modules():
    model = build("torchvision/vit_b_32", device="meta")
    rows = layer_table(model)
    assert sum(row.num_parameters for row in rows) == sum(x.numel() for x in model.parameters())
    assert (rows[0].name, rows[0].sizes) == ("", {"class_token": (1, 1, 768)})
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [row.num_parameters for row in layer_table(tied)] == [12, 3]


def test_statistics_without_parameters_have_a_row():
    [row] = layer_table(nn.BatchNorm1d(3, affine=False))
    assert (row.trainable, row.statistics, row.sizes) == ("-", "follow", {})


def test_a_rate_is_the_one_before_a_schedule_has_changed_it():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    set_rates(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] == 0.0625
    assert layer_table(model, optimizer)[0].learning_rates == (0.5,)
