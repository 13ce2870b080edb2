"""Frozen stays frozen, bit for bit, its statistics too."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from timm.layers import EvoNorm2dB0
from torch import nn

from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import WrongArgument
from torchkeep.networks import build
from torchkeep.training.surgery import (
    freeze,
    freeze_all_but_head,
    freeze_stages,
    replace_head,
    stages,
    trainable,
    unfreeze,
    unfreeze_stages,
)


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


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [self.layer() for _ in range(3)]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(4, 2)

    def layer(self):
        # Without a bias, whose gradient the norm takes away.
        return nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False))

    def forward(self, inputs):
        return self.fc(self.layers(inputs))


@pytest.mark.parametrize("num", range(5))
def test_freezing_by_depth_keeps_the_first_stages_and_trains_the_others(num):
    model = Deep()
    parts = stages(model)
    frozen = freeze_stages(model, num)
    assert frozen == [name for part in parts[:num] for name in part.parameters]
    before = {name: fingerprint(item) for name, item in model.state_dict().items()}
    model.fc.weight.requires_grad_(True)  # a step needs something to train
    step(model)
    after = {name: fingerprint(item) for name, item in model.state_dict().items()}
    for index, part in enumerate(parts):
        for name in (*part.parameters, *part.buffers):
            assert (before[name] == after[name]) == (index < num and name != "fc.weight"), name


def test_stages_are_unfrozen_from_the_end():
    model = Deep()
    freeze(model)
    assert unfreeze_stages(model, 2)[-2:] == ["fc.weight", "fc.bias"]
    model.train()
    assert [layer[1].training for layer in model.layers] == [False, False, True]
    assert [layer[0].weight.requires_grad for layer in model.layers] == [False, False, True]
    assert unfreeze_stages(model, 0) == []


def test_all_but_the_head_is_all_but_the_head():
    model = build("torchvision/googlenet")
    head = replace_head(model, 3)
    freeze_all_but_head(model)
    learns = {
        key.rpartition(".")[0] for key, item in model.named_parameters() if item.requires_grad
    }
    assert learns == set(head.names)
    model.train()
    assert not any(item.training for item in model.modules() if isinstance(item, nn.BatchNorm2d))


def test_a_model_without_a_head_is_not_frozen_whole():
    with pytest.raises(WrongArgument, match=r"Sequential has no layer that .*except_="):
        freeze_all_but_head(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("num", [-1, 5])
def test_a_number_that_is_none_of_stages_is_refused(num):
    with pytest.raises(WrongArgument, match=f"from 0 to 4 is what this Deep has, not {num}"):
        freeze_stages(Deep(), num)
    with pytest.raises(WrongArgument, match=f"from 0 to 4 is what this Deep has, not {num}"):
        unfreeze_stages(Deep(), num)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_the_vectors_of_a_spectral_norm_stay_as_they_are(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    freeze(model, except_=("1",))
    before = fingerprint(model[0].state_dict())
    step(model)
    assert fingerprint(model[0].state_dict()) == before
    unfreeze(model)
    step(model)
    assert fingerprint(model[0].state_dict()) != before


def test_a_norm_with_a_variance_alone_stays_as_it_is():
    model = nn.Sequential(EvoNorm2dB0(4), nn.Conv2d(4, 2, 1))
    freeze(model, except_=("1",))
    before = fingerprint(model[0].state_dict())
    model.train()(torch.randn(2, 4, 3, 3)).sum().backward()
    assert fingerprint(model[0].state_dict()) == before
