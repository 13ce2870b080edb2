"""A network that computes as in 8 bits: what is rounded, what follows, and what stays as it is."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from torchkeep import load, save
from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.modes import evaluating
from torchkeep.training.checkup import check_up, try_rates
from torchkeep.training.classifier import Card, load_classifier, read_card, save_classifier
from torchkeep.training.data import Preprocessing
from torchkeep.training.evaluation import evaluate
from torchkeep.training.loop import train_epoch
from torchkeep.training.preparing import loaders, prepare
from torchkeep.training.pruning import slim
from torchkeep.training.quantizing import (
    fake_quantize,
    input_ranges,
    layers_in_float,
    observe_ranges,
)
from torchkeep.training.retraining import retrain
from torchkeep.training.settings import Settings
from training.samples import CLASSES, DATA, NET, Helped, Net

SMALL: dict[str, Any] = {"arch": NET, "weights": "none", "size": 12, "batch_size": 8, "lr": 0.02}


def quantized(model: nn.Module, *batches: torch.Tensor) -> nn.Module:
    fake_quantize(model, observe_ranges(model, batches))
    return model


# --- What is rounded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (5, 6)),
        (TimmLinear(6, 4), (5, 3, 6)),
        (nn.Conv1d(2, 4, 3, padding=1), (5, 2, 9)),
        (nn.Conv2d(4, 4, 3, 2, groups=2, bias=False), (5, 4, 9, 9)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (5, 2, 9, 9)),
        (nn.Conv2d(2, 4, 3, padding="same", dilation=2), (5, 2, 9, 9)),
        (nn.Conv3d(2, 4, 3), (5, 2, 5, 5, 5)),
        (Conv2dSame(2, 4, 3, 2), (5, 2, 9, 9)),
    ],
)
def test_a_layer_whose_numbers_fit_into_8_bits_computes_as_before(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-63, 64, layer.weight.shape))
        layer.weight.flatten(1)[:, 0] = -64
    inputs = torch.randint(0, 256, shape).float()
    expected = layer(inputs)
    fake_quantize(layer.eval(), {"": (0.0, 255.0)})
    assert torch.equal(layer(inputs), expected)
    assert torch.equal(layer(inputs + 0.3), expected)  # and is rounded


def test_a_channel_of_a_weight_has_129_values_at_most_and_an_input_256() -> None:
    layer = nn.Linear(2000, 3, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[1e-6], [1.0], [50.0]]))
    fake_quantize(layer.eval(), {"": (0.0, 1.0)})
    for row, plain in zip(layer(torch.eye(2000)).T, layer.weight, strict=True):
        assert 100 < len(row.unique()) <= 129
        assert (row - plain).abs().max() <= plain.abs().max() / 128 * 1.0001
    one = nn.Linear(1, 1, bias=False)
    nn.init.ones_(one.weight)
    fake_quantize(one.eval(), {"": (-0.3, 1.0)})
    made = one(torch.linspace(-2, 2, 4001)[:, None]).unique()
    assert len(made) == 256
    assert 0.0 in made


def test_channels_and_inputs_of_zeros_stay_zeros() -> None:
    layer = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        layer.weight[0] = 0
    fake_quantize(layer.eval(), {"": (0.0, 0.0)})
    made = layer(torch.randn(1, 1, 2, 2))
    assert torch.equal(made, layer.bias[None, :, None, None].expand(1, 2, 2, 2))
    fake_quantize(layer, {"": (-1.0, 1.0)})
    made = layer(torch.randn(1, 1, 2, 2))
    assert torch.equal(made[0, 0], layer.bias[0].expand(2, 2))
    assert made[0, 1].unique().numel() == 4


def test_gradients_pass_as_if_nothing_had_been_rounded() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(5, 3), torch.randn(4, 5)
    inputs[0, 0], inputs[1, 1] = 100.0, -100.0  # beyond the range
    inputs.requires_grad_()
    fake_quantize(layer.eval(), {"": (-4.0, 4.0)})
    down = torch.randn(4, 3)
    layer(inputs).backward(down)
    weight, seen = (layer.weight.detach(), inputs.detach().clamp(-4, 4))
    expected = down @ weight
    expected[0, 0] = expected[1, 1] = 0
    # As far apart as the rounding of the other factor alone makes them.
    assert torch.allclose(inputs.grad, expected, atol=down.abs().sum() * weight.abs().max() / 254)
    assert (inputs.grad[0, 0], inputs.grad[1, 1]) == (0, 0)
    assert torch.allclose(layer.weight.grad, down.T @ seen, atol=4 / 128 * down.abs().sum())
    assert (layer.weight.grad != 0).all()
    assert torch.allclose(layer.bias.grad, down.sum(dim=0))


def test_to_round_and_to_fold_a_batchnorm_is_the_same_in_either_order() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval()
    with torch.no_grad():
        for item in (norm.weight, norm.bias, norm.running_mean):
            item.normal_()
        norm.running_var.uniform_(1e-4, 10)
    assert (norm.weight < 0).any()
    folded = fuse_conv_bn_eval(conv.eval(), norm)
    inputs = torch.randn(2, 3, 9, 9)
    ranges = observe_ranges(conv, [inputs])
    for layer in (conv, folded):
        fake_quantize(layer, ranges)
    assert not torch.allclose(conv(inputs), type(conv).forward(conv, inputs), rtol=1e-4)
    assert torch.allclose(norm(conv(inputs)), folded(inputs), rtol=1e-4, atol=1e-4)


# --- What follows, and what stays --------------------------------------------------------------


def test_ranges_follow_in_training_and_stand_still_in_evaluation_and_where_frozen() -> None:
    model = quantized(Net(), torch.randn(8, 3, 12, 12))
    before = input_ranges(model)
    assert list(before) == ["stem.0", "body.0", "head"]
    larger = 10 * torch.randn(8, 3, 12, 12)
    with evaluating(model):
        model(larger)
    assert input_ranges(model) == before
    model.body[0].weight.requires_grad_(False)
    model.train()(larger)
    after = input_ranges(model)
    assert after["body.0"] == before["body.0"]
    for at, end in enumerate((larger.min(), larger.max())):
        expected = 0.99 * before["stem.0"][at] + 0.01 * float(end)
        assert after["stem.0"][at] == pytest.approx(expected)


def test_names_values_and_classes_of_a_network_stay(tmp_path: Path) -> None:
    model = Net()
    before = {name: item.clone() for name, item in model.state_dict().items()}
    names, kinds = dict(model.named_parameters()), [type(item) for item in model.modules()]
    quantized(model, torch.randn(8, 3, 12, 12))
    assert list(model.state_dict()) == list(before)
    assert dict(model.named_parameters()) == names
    assert [type(item) for item in model.modules()] == kinds
    save(model, tmp_path / "x.safetensors")
    found = load(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], item) for name, item in before.items())


def test_a_copy_computes_so_as_well_and_has_ranges_of_its_own() -> None:
    model = quantized(Net(), torch.randn(8, 3, 12, 12)).train()
    copied = copy.deepcopy(model)
    before = input_ranges(model)
    copied(10 * torch.randn(8, 3, 12, 12))
    assert input_ranges(model) == before != input_ranges(copied)
    fake_quantize(copied, before)
    assert input_ranges(copied) == before


def test_ranges_are_means_over_batches_seen_in_evaluation_and_have_0_in_them() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(1, 2)).train()
    random = torch.get_rng_state()
    found = observe_ranges(model, [torch.tensor([[1.0], [4.0]]), torch.tensor([[-2.0], [6.0]])])
    assert found == {"1": (-1.0, 5.0)}
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not input_ranges(model)
    assert model[1].forward.__func__ is nn.Linear.forward


def test_what_is_not_called_in_evaluation_or_does_more_stays_in_float() -> None:
    helped = quantized(Helped(), torch.randn(8, 3, 12, 12))
    assert list(input_ranges(helped)) == ["stem.0", "body.0", "head"]
    assert layers_in_float(helped) == {"Linear": 1}
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mixed = quantized(nn.Sequential(nn.Linear(8, 8), attention), torch.randn(2, 3, 8))
    assert list(input_ranges(mixed)) == ["0"]
    expected = {"MultiheadAttention": 1, "NonDynamicallyQuantizableLinear": 1, "Linear": 2}
    assert layers_in_float(mixed) == expected
    masked = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    both = quantized(nn.Sequential(masked, nn.Linear(3, 3)), torch.randn(2, 3))
    assert list(input_ranges(both)) == ["1"]


def test_what_has_no_ranges_is_refused() -> None:
    bad = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(WrongArgument, match="the input of 0 has values that are NaN or infinite"):
        observe_ranges(bad, [torch.full((1, 2), torch.nan)])
    assert bad[0].forward.__func__ is nn.Linear.forward
    with pytest.raises(WrongArgument, match="this ReLU has no layer that can compute in 8 bits"):
        observe_ranges(nn.ReLU(), [torch.zeros(1)])
    for name in ("1", "x\x1b"):
        with pytest.raises(WrongArgument, match=r"is no layer of this Sequential that can comp"):
            fake_quantize(bad, {"0": (0.0, 1.0), name: (0.0, 1.0)})
    assert not input_ranges(bad)


# --- In a file ---------------------------------------------------------------------------------


def test_a_file_has_the_plain_network_and_the_ranges(tmp_path: Path) -> None:
    options = SMALL | {"epochs": 4, "ema": 0.5, "qat": True}
    result = retrain(prepare(DATA, Settings(**options)), tmp_path)
    row = result.history[result.best_epoch]
    model, card = load_classifier(result.best, arch=NET)
    assert not input_ranges(model)
    assert load(result.best).keys() == Net().state_dict().keys()
    _, val = loaders(prepare(DATA, Settings(**SMALL)))
    plain = evaluate(model, val)
    fake_quantize(model, card.qat)
    found = evaluate(model, val)
    assert (found.accuracy, found.loss) == (row["val_accuracy"], row["val_loss"])
    assert found.loss != plain.loss
    assert result.answers.loss.mean() == pytest.approx(found.loss)
    # What a run says of its best model, it says with the ranges of the file.
    silent = replace(card, qat=dict.fromkeys(card.qat, (0.0, 0.0)))
    save_classifier(model, silent, result.best, overwrite=True)
    said = retrain(prepare(DATA, Settings(**options)), tmp_path).answers
    assert len(said.predicted.unique()) == 1 < len(result.answers.predicted.unique())
    # Trained once more without it, it is no longer said to be good in 8 bits.
    options = SMALL | {"weights": str(result.best), "epochs": 1}
    again = retrain(prepare(DATA, Settings(**options)), tmp_path / "again")
    assert read_card(again.best).qat is None


def limits(low: object, high: object) -> dict[str, object]:
    return {"bits": 8, "weights": "per-channel symmetric", "inputs": {"head": [low, high]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([1], "is no table of the ranges of inputs"),
        ({"bits": 8, "inputs": []}, "is no table of the ranges of inputs"),
        (limits(0, 1) | {"bits": 4}, "is of another kind than 8 bits"),
        (limits(0, 1) | {"weights": ["x"]}, "is of another kind than 8 bits"),
        (limits(0, 1) | {"inputs": {}}, "has ranges of 0 layers, and not of 1 to 65,536"),
        (limits(1, 2), "has no range of numbers with 0 in it for head"),
        (limits(-2, -1), "has no range of numbers with 0 in it for head"),
        (limits(0, 10**400), "has no range of numbers with 0 in it for head"),
        (limits(True, 1), "has no range of numbers with 0 in it for head"),
        (limits("0", 1), "has no range of numbers with 0 in it for head"),
        (limits(0, 1) | {"inputs": {"a\x1b": [0]}}, r"with 0 in it for a\\x1b"),
        ('{"bits": 8, "inputs": {"head": [NaN, 1]}}', "no valid JSON"),
        ('{"bits": 8, "inputs": {"head": [0, 1e999]}}', "is of another kind"),
        (limits(0, 1) | {"inputs": {str(at): [0, 1] for at in range(65537)}}, "of 65,537 layers"),
    ],
)
def test_ranges_that_none_can_be_are_refused(tmp_path: Path, text: object, message: str) -> None:
    recipe = Preprocessing(12, 12, None)
    told = {"arch": NET, "classes": CLASSES, "preprocessing": recipe.to_json(), "qat": text}
    save(Net(), tmp_path / "x.safetensors", metadata=told)
    with pytest.raises(DamagedFile, match=message) as caught:
        read_card(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


def test_what_is_written_of_ranges_is_read_again_bit_for_bit(tmp_path: Path) -> None:
    model = quantized(Net(), torch.randn(8, 3, 12, 12))
    ranges = input_ranges(model)
    card = Card(NET, tuple("abcde"), Preprocessing(12, 12, None), qat=ranges)
    save_classifier(model, card, tmp_path / "x.safetensors")
    assert read_card(tmp_path / "x.safetensors") == card


# --- In a training -----------------------------------------------------------------------------


def test_ranges_are_observed_before_the_first_step_and_nothing_is_drawn_for_it() -> None:
    states = []
    for qat in (False, True):
        prepared = prepare("training.samples:drawing", Settings(**SMALL, qat=qat))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    model = prepared.start.model
    before = input_ranges(model)
    assert all(high > 0 for _, high in before.values())
    found = check_up(prepared)
    try_rates(prepared)
    assert input_ranges(model) == before
    assert not [item for item in found if item.check == "qat-float"]


def test_what_stays_in_float_is_told() -> None:
    prepared = prepare(DATA, Settings(**SMALL | {"arch": "training.samples:Helped"}, qat=True))
    (found,) = [item for item in check_up(prepared) if item.check == "qat-float"]
    assert found.severity == "note"
    assert found.text == "with --qat the weights of 1 Linear stay in float"


def test_a_slimmed_network_computes_so_too(tmp_path: Path) -> None:
    first = retrain(prepare(DATA, Settings(**SMALL, epochs=1)), tmp_path / "first")
    model, card = load_classifier(first.best, arch=NET)
    report = slim(model, 0.5, inputs=torch.zeros(1, 3, 12, 12), keep=["head"])
    card = Card(NET, card.classes, card.preprocessing, report.structure)
    save_classifier(model, card, tmp_path / "slim.safetensors")
    options = SMALL | {"weights": str(tmp_path / "slim.safetensors"), "channels_last": True}
    result = retrain(prepare(DATA, Settings(**options, epochs=1, qat=True)), tmp_path / "run")
    found = read_card(result.best)
    assert found.structure.layers
    assert list(found.qat) == ["stem.0", "body.0", "head"]


def test_a_network_learns_in_8_bits_what_it_learns_in_float() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    is_kept = torch.arange(len(labels)) % 5 == 0
    batches = list(zip(images[~is_kept].split(48), labels[~is_kept].split(48), strict=True))
    scores = []
    for in_8_bits in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(384, 10)),
        )
        if in_8_bits:
            quantized(model, images[:100])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(6):
            train_epoch(model, batches, optimizer)
        scores.append(evaluate(model, [(images[is_kept], labels[is_kept])]).accuracy)
    assert scores[0] > 0.96
    assert scores[1] >= scores[0] - 0.01
