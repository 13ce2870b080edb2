"""Other input channels, and the old weights made use of."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.networks import build
from torchkeep.training.surgery import InputLayer, adapt_channels, replace_input


def test_a_grey_image_gives_what_it_gave_as_three_channels():
    model = torchvision.models.resnet18(weights=None).eval()
    grey = torch.rand(2, 1, 64, 64)
    before = model(grey.expand(-1, 3, -1, -1))
    assert replace_input(model, 1) == InputLayer(("conv1",), 3, 1, "summed")
    torch.testing.assert_close(model(grey), before)


@pytest.mark.parametrize("num_channels", [2, 4, 5, 12])
def test_more_channels_repeat_the_old_ones_in_turn(num_channels):
    weight = torch.rand(4, 3, 2, 2)
    adapted = adapt_channels(weight, num_channels)
    assert adapted.shape == (4, num_channels, 2, 2)
    for channel in range(num_channels):
        expected = weight[:, channel % 3] * 3 / num_channels
        torch.testing.assert_close(adapted[:, channel], expected)


def test_few_bits_are_summed_in_many():
    weight = torch.tensor([256.0, 1.0, 1.0]).reshape(1, 3, 1, 1).bfloat16()
    assert adapt_channels(weight, 1).item() == 258
    assert adapt_channels(weight, 1).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["repvgg_a0", "crossvit_tiny_240", "test_vit", "tresnet_m"])
def test_timms_networks_say_where_the_input_goes(name):
    model = build(f"timm/{name}", device="meta")
    layer = replace_input(model, 5)
    assert (layer.old_channels, layer.num_channels, layer.how) == (3, 5, "repeated")
    assert len(layer.names) == (2 if name in ("repvgg_a0", "crossvit_tiny_240") else 1)
    size = model.pretrained_cfg["input_size"][1]
    assert model.eval()(torch.empty(2, 5, size, size, device="meta")).shape == (2, 1000)


def test_pixels_side_by_side_keep_their_places():
    model = build("timm/cs3darknet_focus_s").eval()
    grey = torch.rand(2, 1, 64, 64)
    before = model(grey.expand(-1, 3, -1, -1))
    assert replace_input(model, 1).how == "summed"
    torch.testing.assert_close(model(grey), before)


def test_a_networks_own_normalisation_of_three_channels_is_turned_off():
    model = torchvision.models.googlenet(
        weights=None, init_weights=False, aux_logits=False, transform_input=True
    )
    layer = replace_input(model, 1)
    assert (layer.names, layer.changed) == (("conv1.conv",), ("transform_input=False",))
    assert model.eval()(torch.rand(2, 1, 64, 64)).shape == (2, 1000)


def test_a_frozen_layer_stays_frozen_and_of_its_class():
    model = build("timm/tf_efficientnetv2_b0")
    model.requires_grad_(False)
    kind = type(model.conv_stem)
    replace_input(model, 4)
    assert type(model.conv_stem) is kind
    assert not model.conv_stem.weight.requires_grad


def test_weights_may_be_drawn_anew():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert replace_input(model, 2, is_adapted=False).how == "drawn"
    assert model[0].weight.shape == (4, 2, 3, 3)


def test_the_same_number_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    weight = model[0].weight
    assert replace_input(model, 3).how == "kept"
    assert model[0].weight is weight


def test_what_cant_be_adapted_is_refused():
    with pytest.raises(WrongArgument, match="an input has at least one channel, not 0"):
        replace_input(nn.Conv2d(3, 4, 3), 0)
    with pytest.raises(WrongArgument, match="this Linear has no first convolution"):
        replace_input(nn.Linear(2, 2), 1)
    with pytest.raises(WrongArgument, match="this Linear has no Conv2d called 'x'"):
        replace_input(nn.Linear(2, 2), 1, name="x")
    with pytest.raises(WrongArgument, match="'0' can't be adapted: it is grouped"):
        replace_input(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), 1)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)))
    with pytest.raises(WrongArgument, match="'0' can't be adapted: it is computed from other"):
        replace_input(normed, 1)
