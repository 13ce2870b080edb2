"""The table of widths makes the slimmed network, and one that does not fit makes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import WrongArgument
from torchkeep.training.pruning import SlimStructure, describe_structure, restructure


class Net(nn.Module):
    def __init__(self, width: int = 8, outer: int = 12, inner: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.grouped = nn.ConvTranspose2d(width, outer, 3, groups=4)
        self.norm = nn.GroupNorm(2, outer)
        self.act = nn.PReLU(outer)
        self.scale = nn.Parameter(torch.ones(outer, 1, 1))
        self.end = nn.Sequential(nn.Linear(outer, inner), nn.LayerNorm(inner), nn.Linear(inner, 2))

    def forward(self, images):
        images = self.act(self.norm(self.grouped(self.depthwise(self.first(images)))))
        return self.end((images * self.scale).mean((2, 3)))


def test_the_table_and_the_original_make_the_slimmed_network():
    original, slimmed = Net(), Net(4, 8, 3)
    structure = describe_structure(original, slimmed)
    assert structure.layers["depthwise"] == {"in_channels": 4, "out_channels": 4, "groups": 4}
    assert structure.layers["end.1"] == {"normalized_shape": 3}
    assert structure.parameters == {"scale": (8, 1, 1)}
    restructure(original, SlimStructure.from_json(structure.to_text()))
    original.load_state_dict(slimmed.state_dict())
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(original(images), slimmed(images))
    assert repr(original) == repr(slimmed)


def test_what_was_not_loaded_yet_is_not_a_number():
    original = Net()
    original.first.weight.requires_grad_(False)
    restructure(original, describe_structure(original, Net(4)))
    assert original.first.weight.isnan().all()
    assert not original.first.weight.requires_grad
    assert original.first.bias.requires_grad


def test_a_network_on_meta_stays_there():
    with torch.device("meta"):
        model = Net()
    restructure(model, describe_structure(Net(), Net(4)))
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    assert tuple(model.first.weight.shape) == (4, 3, 3, 3)


def test_the_json_is_the_structure_again():
    structure = describe_structure(Net(), Net(4, 8), network="a:Net", num_classes=2)
    assert SlimStructure.from_json(structure.to_json()) == structure
    assert SlimStructure.from_json(structure.to_text()) == structure
    assert structure.num_classes == 2


def test_networks_that_differ_in_more_than_widths_are_refused():
    other = Net(4)
    other.act = nn.ReLU()
    with pytest.raises(WrongArgument, match="differ in more than widths: 'act'"):
        describe_structure(Net(), other)
    other = Net()
    other.first.weight = nn.Parameter(torch.ones(2, 3, 3, 3))
    with pytest.raises(WrongArgument, match=r"first.weight is \[2, 3, 3, 3\], and the layer's wid"):
        describe_structure(Net(), other)


HUGE = 10**9


@pytest.mark.parametrize(
    ("layers", "parameters", "text"),
    [
        ({"nowhere": {"out_channels": 4}}, {}, "there is no layer nowhere that has widths"),
        ({"\x1b[31m": {"out_channels": 4}}, {}, "there is no layer \\x1b[31m that has widths"),
        ({"end": {"out_features": 1}}, {}, "there is no layer end that has widths"),
        ({"first": {"stride": 1}}, {}, "first has no width stride"),
        ({"first": {"__class__": 1}}, {}, "first has no width __class__"),
        ({"first": {"out_channels": 9}}, {}, "first has 8 out_channels, and can't have 9"),
        ({"first": {"out_channels": -1}}, {}, "first has 8 out_channels, and can't have -1"),
        ({"first": {"out_channels": HUGE}}, {}, "can't have 1000000000. Take the network that"),
        ({"grouped": {"out_channels": 6}}, {}, "grouped can't have {'out_channels': 6}"),
        ({"norm": {"num_channels": 3}}, {}, "norm can't have {'num_channels': 3}"),
        ({}, {"scale": (13, 1, 1)}, "scale is [12, 1, 1], and can't be [13, 1, 1]"),
        ({}, {"scale": (8, 1)}, "scale is [12, 1, 1], and can't be [8, 1]"),
        ({}, {"first.weight": (1, 1, 1, 1)}, "no parameter first.weight that is in no layer"),
        ({}, {"bias": (1,)}, "there is no parameter bias that is in no layer"),
    ],
)
def test_a_structure_that_does_not_fit_changes_nothing(layers, parameters, text):
    model = Net()
    before, shown = fingerprint(model.state_dict()), repr(model)
    good = {"end.0": {"out_features": 3}}
    with pytest.raises(WrongArgument) as caught:
        restructure(model, SlimStructure(good | layers, parameters))
    assert text in str(caught.value)
    assert (fingerprint(model.state_dict()), repr(model)) == (before, shown)


GOOD = SlimStructure({"a": {"out_channels": 1}}).to_json()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{", "no description of a slimmed network: it is no valid JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ([], "it is no table of version 1"),
        (GOOD | {"version": 2}, "it is no table of version 1"),
        (GOOD | {"network": 3}, "the network's name is no text"),
        (GOOD | {"layers": []}, "layers is no table"),
        (GOOD | {"layers": {"a": 3}}, "layer a has no table of widths"),
        (GOOD | {"layers": {"a": {"b": -3}}}, "a has the width -3, and not 1 to 16,777,216"),
        (GOOD | {"layers": {"a": {"b": 0}}}, "a has the width 0"),
        (GOOD | {"layers": {"a": {"b": True}}}, "a has the width True"),
        (GOOD | {"layers": {"a": {"b": 1.5}}}, "a has the width 1.5"),
        (GOOD | {"layers": {"a": {"b": HUGE}}}, "a has the width 1000000000"),
        (GOOD | {"parameters": {"a": 3}}, "parameter a has no shape"),
        (GOOD | {"parameters": {"a": [2, -1]}}, "a has the width -1"),
        (GOOD | {"num_classes": HUGE}, "num_classes has the width 1000000000"),
    ],
)
def test_a_text_that_is_no_structure_is_refused(value, text):
    with pytest.raises(WrongArgument) as caught:
        SlimStructure.from_json(copy.deepcopy(value))
    assert text in str(caught.value)
    assert "Take the one of `describe_structure`" in str(caught.value)
