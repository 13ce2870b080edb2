"""Modes are put back as they were, module by module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.training import evaluating, training


def model():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    net[1].eval()
    return net


def modes(net):
    return [module.training for module in net.modules()]


def test_evaluating_switches_everything_off_and_back():
    net = model()
    before = modes(net)
    with evaluating(net):
        assert modes(net) == [False] * 4
        assert not net(torch.ones(2, 2)).requires_grad
    assert modes(net) == before == [True, True, False, True]
    assert torch.is_grad_enabled()


def test_what_was_computed_while_evaluating_can_be_used_for_training():
    net = model()
    with evaluating(net):
        features = net(torch.ones(2, 2))
    net[0](features).sum().backward()


def test_training_switches_everything_on_and_back():
    net = model().eval()
    with torch.no_grad(), training(net):
        assert modes(net) == [True] * 4
        assert net(torch.ones(2, 2)).requires_grad
    assert modes(net) == [False] * 4


def test_modes_are_put_back_after_an_error():
    net = model()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        1 / 0  # noqa: B018
    assert modes(net) == [True, True, False, True]
