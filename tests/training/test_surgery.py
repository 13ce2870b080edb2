"""Frozen stays frozen, and a new head fits."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torchvision
from torch import nn

from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import WrongArgument
from torchkeep.training import Head, freeze, replace_head, trainable, unfreeze


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.fc(self.body(inputs))


def step(model):
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    model.train()
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_frozen_part_does_not_move_by_a_bit():
    model = Net()
    frozen = freeze(model, except_=("fc",))
    assert frozen == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    body, head = fingerprint(model.body.state_dict()), fingerprint(model.fc.state_dict())
    step(model)
    assert fingerprint(model.body.state_dict()) == body
    assert fingerprint(model.fc.state_dict()) != head


def test_requires_grad_alone_would_let_the_statistics_move():
    model = Net()
    model.body.requires_grad_(False)
    before = fingerprint(model.body.state_dict())
    step(model)
    assert fingerprint(model.body.state_dict()) != before


def test_only_the_trainable_parameters_are_returned():
    model = Net()
    freeze(model, except_=("fc",))
    assert [id(item) for item in trainable(model)] == [id(model.fc.weight), id(model.fc.bias)]


def test_dropout_is_not_frozen():
    model = Net()
    freeze(model, except_=("fc",))
    model.train()
    assert [module.training for module in model.body] == [True, False, True]


def test_freezing_survives_copying_and_pickling():
    model = Net()
    freeze(model, except_=("fc",))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        other.train()
        assert not other.body[1].training
        assert other.body[1].train.args[0] is other.body[1]


@pytest.mark.parametrize("pattern", ["body", "body.1", "body.*", "*.1", "body.1.weight"])
def test_parts_are_named_by_module_or_parameter_or_pattern(pattern):
    model = Net()
    frozen = freeze(model, except_=(pattern,))
    assert "body.1.weight" not in frozen
    assert "fc.weight" in frozen


def test_a_norm_outside_the_frozen_part_stays_awake():
    model = Net()
    freeze(model, except_=("body.1", "fc"))
    model.train()
    assert model.body[1].training


def test_unfreezing_undoes_it():
    model = Net()
    freeze(model)
    assert trainable(model) == []
    assert unfreeze(model, ("body.1",)) == ["body.1.weight", "body.1.bias"]
    model.train()
    assert model.body[1].training
    assert not model.fc.weight.requires_grad
    unfreeze(model)
    assert len(trainable(model)) == 6


def test_a_name_that_matches_nothing_is_refused():
    with pytest.raises(WrongArgument, match=r"'classifier' is no module .* parts are body, fc\."):
        freeze(Net(), except_=("classifier",))
    with pytest.raises(WrongArgument, match="'head' is no module or parameter of this Net"):
        unfreeze(Net(), ("head",))


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
}


@pytest.mark.parametrize("name", HEADS)
def test_the_heads_of_torchvision_are_found(name):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(weights=None)
    head = replace_head(model, 7)
    assert head.name == HEADS[name]
    assert (head.old_classes, head.num_classes) == (1000, 7)
    size = 224 if name in ("vit_b_32", "alexnet") else 64
    assert model.eval()(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


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
    assert replace_head(model, 5, name="0").name == "0"


def test_what_has_no_head_is_refused():
    with pytest.raises(WrongArgument, match="this Sequential has no last layer"):
        replace_head(nn.Sequential(nn.ReLU()), 2)
    with pytest.raises(WrongArgument, match=r"has no Linear layer or 1x1 Conv2d called 'x'"):
        replace_head(nn.Linear(2, 2), 2, name="x")
    with pytest.raises(WrongArgument, match="at least one class, not 0"):
        replace_head(nn.Linear(2, 2), 0)
