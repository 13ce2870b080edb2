"""A slimmed network is smaller, works, and can be retrained; what can't be slimmed is unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.swin_transformer import SwinTransformer

from torchkeep.checkpointing.state.encoding import fingerprint
from torchkeep.errors import WrongArgument
from torchkeep.modes import evaluating
from torchkeep.networks import build
from torchkeep.training import evaluate, freeze, train_epoch
from torchkeep.training.pruning import (
    describe_structure,
    load_slim,
    load_slim_into,
    restructure,
    save_slim,
    slim,
)

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, end: int = 3) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 12, 3)
        self.scale = nn.Parameter(torch.ones(12, 1, 1))
        self.end = nn.Linear(12, end)

    def forward(self, images):
        images = self.norm(self.a(images)).relu()
        return self.end((self.scale * self.b(images)).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "most"),
    [
        ("torchvision/mobilenet_v2", 32, 0.35),
        ("torchvision/squeezenet1_1", 64, 0.35),
        ("timm/convnext_atto", 64, 0.35),
        ("timm/vit_tiny_patch16_224", 224, 0.75),
    ],
)
def test_a_network_is_slimmed_saved_and_loaded_bit_for_bit(name, size, most, tmp_path):
    model = build(name, num_classes=7)
    images = torch.randn(1, 3, size, size)
    report = slim(model, 0.5, inputs=images, runs=1)
    assert report.after.num_parameters == sum(p.numel() for p in model.parameters())
    assert report.after.num_parameters < most * report.before.num_parameters
    assert report.after.nbytes < most * report.before.nbytes
    assert report.after.num_macs < report.before.num_macs
    path = tmp_path / "slim.safetensors"
    save_slim(model, path, report.structure, network=name, num_classes=7)
    again = load_slim(path)
    assert fingerprint(again.state_dict()) == fingerprint(model.state_dict())
    with evaluating(model), evaluating(again):
        assert model(images).shape == (1, 7)
        assert torch.equal(again(images), model(images))


def test_slimming_costs_accuracy_and_a_short_retraining_gains_it_back(tmp_path):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    train = [(images[i : i + 64], labels[i : i + 64]) for i in range(0, 768, 64)]
    test = [(images[800:1000], labels[800:1000])]

    def accuracy(net):
        return evaluate(net, test).accuracy

    def fit(net, epochs):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(epochs):
            train_epoch(net, train, optimizer)

    model = small_resnet18()
    fit(model, 3)
    report = slim(model, 0.5, inputs=images[:8], evaluate=accuracy, runs=3)
    assert report.score_before is not None
    assert report.score_after is not None
    assert report.score_after == accuracy(model)
    assert report.score_before > 0.85
    assert report.score_after < report.score_before - 0.3
    path = tmp_path / "slim.safetensors"
    save_slim(model, path, report.structure)
    loaded = small_resnet18()
    load_slim_into(loaded, path)
    assert accuracy(loaded) == report.score_after
    fit(loaded, 3)
    assert accuracy(loaded) > report.score_before - 0.05
    save_slim(loaded, path, report.structure, overwrite=True)
    again = small_resnet18()
    load_slim_into(again, path)
    assert fingerprint(again.state_dict()) == fingerprint(loaded.state_dict())
    assert accuracy(again) == accuracy(loaded)


def small_resnet18():
    """Return the network as it is used for pictures as small as digits: with a finer beginning."""
    model = build("torchvision/resnet18", num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, 3, stride=2, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def test_the_model_is_changed_in_place_and_frozen_parts_stay_so():
    model = Net()
    freeze(model, except_=("end",))
    model.train()
    layer, parameter = model.a, model.end.bias
    report = slim(model, 0.5, inputs=IMAGES, runs=1)
    assert model.a is layer
    assert model.end.bias is parameter  # what keeps its shape stays the object that it was
    assert tuple(model.a.weight.shape) == (4, 3, 3, 3)
    assert tuple(model.scale.shape) == (6, 1, 1)
    assert dict(report.structure.layers["b"]) == {"in_channels": 4, "out_channels": 6}
    assert not model.a.weight.requires_grad
    assert model.end.weight.requires_grad
    model.train()
    assert model.training
    assert not model.norm.training


def test_what_is_kept_keeps_its_outputs():
    model = Net()
    slim(model, 0.5, inputs=IMAGES, keep=("a",), runs=1)
    assert (model.a.out_channels, model.b.out_channels) == (8, 6)


def test_widths_can_be_multiples():
    model = Net()
    slim(model, 0.4, inputs=IMAGES, multiple_of=4, runs=1)
    assert (model.a.out_channels, model.b.out_channels) == (4, 4)


def test_the_least_important_channels_go():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([1.0, 5.0, 2.0, 9.0])[:, None]
        model[2].weight[:] = torch.tensor([9.0, 5.0, 0.1, 0.1])
    by_first, by_group = copy.deepcopy(model), copy.deepcopy(model)
    inputs = torch.ones(2, 4)
    slim(by_first, 0.5, inputs=inputs, importance="magnitude", runs=1)
    assert by_first[0].weight[:, 0].tolist() == [5.0, 9.0]
    slim(by_group, 0.5, inputs=inputs, runs=1)
    # Squares of all weights of a channel: 4 * 1 + 2 * 81, 4 * 25 + 2 * 25, 16 + 0.02, 324 + 0.02.
    assert by_group[0].weight[:, 0].tolist() == [1.0, 9.0]


def test_the_same_call_gives_the_same_network():
    torch.manual_seed(1)
    one, state = Net(), torch.get_rng_state()
    two = copy.deepcopy(one)
    slim(one, 0.5, inputs=IMAGES, runs=1)
    slim(two, 0.5, inputs=IMAGES, runs=1)
    assert fingerprint(one.state_dict()) == fingerprint(two.state_dict())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_can_be_slimmed_twice():
    original = Net()
    model = copy.deepcopy(original)
    slim(model, 0.5, inputs=IMAGES, runs=1)
    slim(model, 0.5, inputs=IMAGES, runs=1)
    structure = describe_structure(original, model)
    assert structure.layers["a"] == {"out_channels": 2}
    restructure(original, structure)
    original.load_state_dict(model.state_dict())


class Shared(Net):
    """A module is in two places, as in CoaT."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.norm


def test_a_module_in_two_places_is_slimmed_once():
    model, fresh = Shared(), Shared()
    report = slim(model, 0.5, inputs=IMAGES, runs=1)
    assert report.structure.layers["norm"] == {"num_features": 4}
    restructure(fresh, report.structure)
    fresh.load_state_dict(model.state_dict())
    with evaluating(model), evaluating(fresh):
        assert torch.equal(model(IMAGES), fresh(IMAGES))


# --- What is refused ---------------------------------------------------------------------------


class Counting(Net):
    """It counts its channels, as many networks do."""

    def forward(self, images):
        images = self.norm(self.a(images)).relu()
        return self.end(self.b(images).mean((2, 3)).reshape(-1, 12))


class Idle(Net):
    """A part of it runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 3)


class Silent(Net):
    def forward(self, images):
        super().forward(images)
        return "done"


class Detached(Net):
    """No gradient goes through it, so that there is nothing to be traced."""

    def forward(self, images):
        return super().forward(images).detach()


def reshaping():
    """Return a network in which Torch-Pruning follows a channel without end."""
    return SwinTransformer([4, 4], 8, [1, 2], [1, 2], [4, 4], num_classes=3)


def masked():
    model = Net()
    prune.l1_unstructured(model.a, "weight", 0.5)
    return model


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    return model


def parametrized():
    model = Net()
    parametrizations.weight_norm(model.a)
    return model


@pytest.mark.parametrize(
    ("model", "ratio", "options", "text"),
    [
        (Net(), 0.0, {}, "the share of channels that goes is between 0 and 1, not 0.0"),
        (Net(), 1.0, {}, "between 0 and 1, not 1.0. 0.5 takes half of each layer's channels"),
        (Net(), float("nan"), {}, "between 0 and 1, not nan"),
        (Net(), 0.5, {"keep": ("c",)}, "'c' is no module of this Net. Its parts are a, norm, b"),
        (Net(), 0.5, {"importance": "best"}, "is 'group' or 'magnitude', not 'best'"),
        (Net(), 0.5, {"multiple_of": 0}, "multiple_of and runs are from 1 on, not 0"),
        (Net(), 0.5, {"inputs": torch.ones(2, 4, 8, 8)}, "this Net can't be run on the inputs"),
        (Net(), 0.5, {"inputs": "images"}, "Give inputs of the shape, type and device"),
        (
            Net(),
            0.5,
            {"keep": ("*",)},
            "nothing of this Net can be slimmed by 0.5. Take a larger ratio, or",
        ),
        (Counting(), 0.5, {}, "this network does not work without the channels: "),
        (Idle(), 0.5, {}, "these parts do not run in evaluation mode: aux. Build the network"),
        (Silent(), 0.5, {}, "this Silent gives no tensors, so it can't be traced"),
        (Detached(), 0.5, {}, "this Detached can't be traced: no gradient goes through it"),
        (
            reshaping(),
            0.5,
            {},
            "finds no end to what belongs to a channel of this SwinTransformer. ",
        ),
        (masked(), 0.5, {}, "a has masks of torch.nn.utils.prune. Call make_masks_permanent"),
        (tied(), 0.5, {"inputs": torch.ones(2, 4)}, "0.weight and 1.weight are one tensor"),
        (parametrized(), 0.5, {}, "a is parametrized. Call torch.nn.utils.parametrize"),
    ],
)
def test_what_cannot_be_slimmed_is_refused_and_unchanged(model, ratio, options, text):
    model.train()
    before = fingerprint(model.state_dict())
    with pytest.raises(WrongArgument) as caught:
        slim(model, ratio, **({"inputs": IMAGES, "runs": 1} | options))
    assert text in str(caught.value)
    assert fingerprint(model.state_dict()) == before
    assert all(module.training for module in model.modules())


def test_a_scripted_network_is_refused():
    from torch import fx

    with pytest.raises(WrongArgument, match="has no layers that could be made narrower"):
        slim(fx.symbolic_trace(Net()), 0.5, inputs=IMAGES)


def test_a_network_that_cannot_be_copied_is_refused():
    model = Net()
    model.cached = model.a.weight * 2  # part of a graph, which deepcopy refuses
    with pytest.raises(WrongArgument, match="can't be copied, and so not be tried"):
        slim(model, 0.5, inputs=IMAGES)
