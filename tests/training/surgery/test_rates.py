"""Learning rates by depth, and what has no weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.errors import WrongArgument
from torchkeep.networks import build
from torchkeep.training.surgery import freeze, freeze_stages, parameter_groups, stages, trainable


def by_name(model, groups):
    """Return each parameter's learning rate and weight decay."""
    names = {id(item): name for name, item in model.named_parameters()}
    return {
        names[id(item)]: (group["lr"], group["weight_decay"])
        for group in groups
        for item in group["params"]
    }


def test_a_stage_learns_slower_the_farther_it_is_from_the_end():
    model = build("torchvision/resnet18", device="meta")
    found = by_name(model, parameter_groups(model, 0.1, decay=0.5, weight_decay=0.01))
    parts = stages(model)
    assert len(parts) == 10
    for index, part in enumerate(parts):
        for name in part.parameters:
            assert found[name][0] == pytest.approx(0.1 * 0.5 ** (9 - index))


def test_norms_biases_tokens_and_positions_have_no_weight_decay():
    model = build("torchvision/vit_b_32", device="meta")
    found = by_name(model, parameter_groups(model, 0.1, weight_decay=0.01))
    assert found["class_token"][1] == found["encoder.pos_embedding"][1] == 0.0
    for name, parameter in model.named_parameters():
        if name not in ("class_token", "encoder.pos_embedding"):
            assert (found[name][1] == 0.0) == (parameter.dim() == 1), name


def test_what_timm_says_and_what_is_asked_for_has_no_weight_decay():
    model = build("timm/test_vit")
    groups = parameter_groups(model, 0.1, weight_decay=0.01, no_weight_decay=("patch_embed",))
    found = by_name(model, groups)
    assert found["patch_embed.proj.weight"][1] == found["pos_embed"][1] == 0.0
    assert found["blocks.0.attn.qkv.weight"][1] == 0.01


def test_without_decay_there_are_body_and_head():
    model = build("torchvision/resnet18", device="meta")
    groups = parameter_groups(model, 0.1, weight_decay=0.01, head_lr=0.5)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("head", 0.5, 0.01),
        ("head, no weight decay", 0.5, 0.0),
        ("body", 0.1, 0.01),
        ("body, no weight decay", 0.1, 0.0),
    ]
    assert [group["name"] for group in parameter_groups(model, 0.1)] == ["head", "body"]


def test_only_what_is_trainable_is_in_a_group_unless_all_is_asked_for():
    model = build("torchvision/resnet18", device="meta")
    freeze_stages(model, 8)
    groups = parameter_groups(model, 0.1, decay=0.5)
    assert [group["name"] for group in groups] == ["head", "layer4.1"]
    inside = {id(item) for group in groups for item in group["params"]}
    assert inside == {id(item) for item in trainable(model)}
    complete = parameter_groups(model, 0.1, decay=0.5, is_complete=True)
    assert sum(len(group["params"]) for group in complete) == len(list(model.parameters()))


OPTIMIZERS = "Adadelta Adagrad Adam AdamW Adamax ASGD NAdam RAdam RMSprop Rprop SGD Adafactor"


@pytest.mark.parametrize("name", OPTIMIZERS.split())
def test_any_optimizer_takes_them_and_moves_each_parameter(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    before = [item.detach().clone() for item in model.parameters()]
    groups = parameter_groups(model, 0.1, decay=0.5, weight_decay=0.01)
    optimizer = getattr(torch.optim, name)(groups)
    for _ in range(2):
        model(torch.rand(8, 4)).square().sum().backward()
        optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))
    assert len({group["name"] for group in optimizer.param_groups}) == len(groups) == 4


def test_what_makes_no_groups_is_refused():
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(WrongArgument, match="decay has to be above 0 and at most 1, not 0"):
        parameter_groups(model, 0.1, decay=0)
    with pytest.raises(WrongArgument, match="weight_decay has to be a number from 0 on, not -1"):
        parameter_groups(model, 0.1, weight_decay=-1)
    with pytest.raises(WrongArgument, match="lr has to be a number from 0 on, not nan"):
        parameter_groups(model, float("nan"))
    with pytest.raises(WrongArgument, match="no head that could have a learning rate"):
        parameter_groups(nn.Conv2d(1, 1, 3), 0.1, head_lr=1.0)
    freeze(model)
    with pytest.raises(WrongArgument, match=r"nothing of this Sequential .* is_complete=True"):
        parameter_groups(model, 0.1)
