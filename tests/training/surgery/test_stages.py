"""The parts of a network in the order of depth, each tensor in one."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from torchkeep.networks import build
from torchkeep.training.surgery import stages

NETWORKS = """
torchvision/resnet18 torchvision/vgg11_bn torchvision/densenet121 torchvision/vit_b_32
torchvision/swin_t torchvision/maxvit_t torchvision/googlenet torchvision/convnext_tiny
torchvision/efficientnet_b0 timm/test_vit timm/convnext_atto timm/cait_xxs24_224 timm/pit_ti_224
timm/lcnetv2_base timm/poolformerv2_s12 timm/inception_resnet_v2
""".split()


@pytest.mark.parametrize("name", NETWORKS)
def test_each_tensor_is_in_one_stage_and_each_stage_has_a_name_of_its_own(name):
    model = build(name, device="meta")
    parts = stages(model)
    parameters = [item for part in parts for item in part.parameters]
    buffers = [item for part in parts for item in part.buffers]
    assert sorted(parameters) == sorted(key for key, _ in model.named_parameters())
    assert sorted(buffers) == sorted(key for key, _ in model.named_buffers())
    names = [part.name for part in parts]
    assert (names[0], names[-1]) == ("stem", "head")
    assert len(set(names)) == len(names) >= 8


def names_of(name):
    return [part.name for part in stages(build(name, device="meta"))]


def test_residual_networks_are_told_block_by_block():
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert names_of("torchvision/resnet18") == ["stem", *blocks, "head"]
    assert names_of("timm/resnet18") == ["stem", *blocks, "head"]


def test_transformers_are_told_block_by_block():
    layers = [f"encoder.layers.encoder_layer_{index}" for index in range(12)]
    assert names_of("torchvision/vit_b_32") == ["stem", *layers, "head"]
    model = build("torchvision/vit_b_32", device="meta")
    assert stages(model)[0].parameters == (
        "class_token",
        "conv_proj.weight",
        "conv_proj.bias",
        "encoder.pos_embedding",
    )


def test_plain_networks_are_told_layer_by_layer():
    features = [f"features.{index}" for index in (3, 6, 8, 11, 13, 16, 18)]
    expected = ["stem", *features, "classifier.0", "classifier.3", "head"]
    assert names_of("torchvision/vgg11") == expected


def test_an_auxiliary_classifier_is_part_of_the_head():
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    parts = stages(model)
    assert parts[-2].name == "inception5b"
    assert {item.partition(".")[0] for item in parts[-1].parameters} == {"aux1", "aux2", "fc"}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.begin = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.stack = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
        self.out = nn.Linear(4, 2)


def test_a_norm_and_a_token_belong_to_the_layer_beside_them():
    parts = stages(Own())
    assert [part.name for part in parts] == ["stem", "stack.0", "stack.1", "stack.2", "head"]
    assert parts[0].parameters == ("token", "begin.weight", "begin.bias")
    assert parts[0].buffers == ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")


def test_a_wrapper_is_in_the_names_of_the_tensors():
    parts = stages(nn.DataParallel(Own()))
    assert parts[0].name == "stem"
    assert parts[-1].parameters == ("module.out.weight", "module.out.bias")


def test_a_model_without_parts_has_no_stages():
    assert stages(nn.ReLU()) == ()
    assert [part.name for part in stages(nn.Linear(2, 2))] == ["stem"]
