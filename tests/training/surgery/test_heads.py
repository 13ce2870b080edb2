"""A new head fits, wherever a network has it, and is never put where there is none."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.networks import build
from torchkeep.training.surgery import Head, freeze, head_names, replace_head

HEADS = {
    "resnet18": "fc",
    "vgg11": "classifier.6",
    "alexnet": "classifier.6",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "densenet121": "classifier",
    "squeezenet1_1": "classifier.1",
    "shufflenet_v2_x0_5": "fc",
    "mnasnet0_5": "classifier.1",
    "convnext_tiny": "classifier.2",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "maxvit_t": "classifier.5",
}


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_of_torchvision_are_found(name):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    head = replace_head(model, 7)
    assert head.name == HEADS[name]
    assert (head.old_classes, head.num_classes) == (1000, 7)
    size = 224 if name in ("vit_b_32", "alexnet", "maxvit_t") else 64
    assert model.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


TIMM = {
    "test_vit": ("head",),
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "levit_128s": ("head.linear", "head_dist.linear"),
    "crossvit_tiny_240": ("head.0", "head.1"),
    "volo_d1_224": ("head", "aux_head"),
    "efficientvim_m1": ("heads.0", "heads.1", "heads.2", "heads.3"),
    "repvit_m0_9": ("head.head.l", "head.head_dist.l"),
    "resnetv2_18": ("head.fc",),
    "inception_next_atto": ("head.fc2",),
}


@pytest.mark.parametrize("name", TIMM)
def test_the_heads_of_timm_are_found_and_counted(name):
    model = build(f"timm/{name}", device="meta")
    head = replace_head(model, 7)
    assert head.names == TIMM[name]
    assert model.num_classes == 7
    size = model.pretrained_cfg["input_size"][1]
    assert model.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)
    assert head_names(model) == head.names


@pytest.mark.parametrize(
    ("name", "others"),
    [("googlenet", ("aux1.fc2", "aux2.fc2")), ("inception_v3", ("AuxLogits.fc",))],
)
def test_auxiliary_heads_are_replaced_too(name, others):
    model = getattr(torchvision.models, name)(weights=None, init_weights=False)
    head = replace_head(model, 7)
    assert (head.name, head.others) == ("fc", others)
    outputs = model.train()(torch.rand(2, 3, 299, 299))
    assert [tuple(item.shape) for item in outputs] == [(2, 7)] * (1 + len(others))


def test_a_model_that_was_made_for_features_gets_a_head():
    model = build("timm/test_vit", num_classes=0).double()
    assert head_names(model) == ()
    assert replace_head(model, 7) == Head("head", 64, 0, 7)
    assert model.eval()(torch.rand(2, 3, 160, 160).double()).shape == (2, 7)


def test_the_last_layer_of_a_body_is_not_taken_for_a_head():
    model = torchvision.models.resnet18(weights=None)
    model.fc = nn.Identity()
    assert head_names(model) == ()
    with pytest.raises(WrongArgument, match="this ResNet has no last layer that could be replaced"):
        replace_head(model, 2)


def test_a_head_that_was_exchanged_by_hand_is_found():
    model = build("timm/test_resnet")
    model.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(model.num_features, 5))
    head = replace_head(model, 2)
    assert (head.name, head.old_classes, model.num_classes) == ("fc.1", 5, 2)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_labels = 4
        self.classifier = nn.Linear(6, 4)
        self.body = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6))

    def forward(self, inputs):
        return self.classifier(self.body(inputs))


def test_a_network_of_ones_own_may_register_its_head_first():
    model = Odd()
    assert replace_head(model, 9) == Head("classifier", 6, 4, 9)
    assert model.num_labels == 9
    assert model(torch.rand(2, 3)).shape == (2, 9)


def test_a_wrapped_model_is_looked_into():
    model = nn.DataParallel(Odd())
    assert replace_head(model, 9).name == "module.classifier"
    assert model.module.num_labels == 9
    assert head_names(nn.DataParallel(nn.Linear(2, 2))) == ("module",)


def test_a_layer_that_is_in_two_places_is_replaced_in_both():
    model = Odd()
    model.again = model.classifier
    replace_head(model, 9)
    assert model.again is model.classifier


def test_a_new_head_is_trainable_and_like_the_old_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double().eval()
    freeze(model)
    assert replace_head(model, 3) == Head("1", 4, 2, 3)
    assert model[1].bias is None
    assert model[1].weight.dtype == torch.float64
    assert not model[1].training
    assert model[1].weight.requires_grad


def test_the_layer_may_be_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert replace_head(model, 5, name="0").names == ("0",)


def test_what_has_no_head_is_refused():
    with pytest.raises(WrongArgument, match="this Sequential has no last layer"):
        replace_head(nn.Sequential(nn.ReLU()), 2)
    with pytest.raises(WrongArgument, match=r"has no Linear layer or 1x1 Conv2d called 'x'"):
        replace_head(nn.Linear(2, 2), 2, name="x")
    with pytest.raises(WrongArgument, match="at least one class, not 0"):
        replace_head(nn.Linear(2, 2), 0)
