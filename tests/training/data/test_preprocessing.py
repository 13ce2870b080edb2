"""The recipe from an image to a network's input, as data and carried out."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights, Swin_T_Weights, ViT_B_16_Weights

from torchkeep.errors import DamagedFile, WrongArgument
from torchkeep.training.data import Mixed, Preprocessing, transform_of
from torchkeep.training.data.preprocessing import (
    for_channels,
    for_size,
    from_json,
    of_timm,
    of_torchvision,
)
from torchkeep.training.data.transforms import POLICIES

PICTURE = Image.merge("RGB", [Image.linear_gradient("L")] * 3).resize((300, 200))


@pytest.mark.parametrize(
    "weights", [ResNet50_Weights.IMAGENET1K_V2, Swin_T_Weights.DEFAULT, ViT_B_16_Weights.DEFAULT]
)
def test_an_image_is_prepared_as_torchvision_prepares_it_for_its_weights(weights):
    found = transform_of(of_torchvision(weights))(PICTURE)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, weights.transforms()(PICTURE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
def test_an_image_is_prepared_as_timm_prepares_it_for_its_weights(name):
    config = timm.get_pretrained_cfg(name).to_dict()
    found = transform_of(of_timm(config))(PICTURE)
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(config))
    torch.testing.assert_close(found, theirs(PICTURE))


def test_a_recipe_comes_back_from_json():
    recipe = Preprocessing(96, 128, 140, (0.5,), (0.25,), "bicubic")
    assert from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"height": 0}, "no image is 128 x 0 pixels"),
        ({"height": 1 << 40}, "no image is 128 x"),
        ({"height": 2049}, "no image is 128 x 2049 pixels of one scaled to 140"),
        ({"height": 10**2000}, "no image is 128 x 1000"),
        ({"width": True}, "no image is"),
        ({"width": 96.0}, "no image is 96.0 x 96"),
        ({"resize": 0}, "no image is 128 x 96 pixels of one scaled to 0"),
        ({"resize": False}, "of one scaled to False"),
        ({"resize": 4097}, "of one scaled to 4097"),
        ({"mean": [0.5, 0.5]}, "there are 2 means and 1 standard deviations"),
        ({"mean": [], "std": []}, "there are 0 means and 0 standard deviations"),
        ({"mean": [0.5] * 4097, "std": [1.0] * 4097}, "there are 4097 means"),
        ({"mean": [math.nan]}, "images can't be normalised by"),
        ({"mean": [-1e7]}, "images can't be normalised by"),
        ({"mean": [10**400]}, "it is no such recipe"),
        ({"std": [0.0]}, "images can't be normalised by"),
        ({"std": [1e-300]}, "images can't be normalised by"),
        ({"std": [math.inf]}, "images can't be normalised by"),
        ({"interpolation": "magic"}, "there is no interpolation 'magic'"),
        ({"interpolation": "\x1b" * 999}, r"there is no interpolation '\x1b\x1b"),
        ({"interpolation": ["bilinear"]}, "there is no interpolation ['bilinear']"),
        ({"mean": "x"}, "it is no such recipe"),
        ({"other": 1}, "it is no such recipe"),
    ],
)
def test_a_recipe_that_is_none_is_refused(change, reason):
    table = Preprocessing(96, 128, 140, (0.5,), (0.25,), "bicubic").to_json() | change
    with pytest.raises(DamagedFile, match="its preprocessing can't be used: ") as caught:
        from_json(table)
    assert reason in str(caught.value)
    for other in (None, [], "text", 3):
        with pytest.raises(DamagedFile, match="it is no such recipe"):
            from_json(other)


def test_a_recipe_for_other_channels_goes_with_the_weights_that_are_adapted_to_them():
    recipe = for_size(8, mean=(0.1, 0.2, 0.6), std=(1.0, 2.0, 6.0))
    grey = for_channels(recipe, 1)
    assert grey.mean == (pytest.approx(0.3),)
    assert grey.std == (3.0,)
    five = for_channels(recipe, 5)
    assert five.mean == (0.1, 0.2, 0.6, 0.1, 0.2)
    assert five.std == (1.0, 2.0, 6.0, 1.0, 2.0)
    assert for_channels(grey, 3).std == (3.0, 3.0, 3.0)
    assert for_channels(recipe, 3) is recipe
    assert from_json(five.to_json()) == five


def test_an_image_of_neither_one_channel_nor_three_is_refused_when_it_comes():
    transform = transform_of(for_channels(for_size(8), 5))
    with pytest.raises(WrongArgument, match=r"have 1 channel or 3, and the network takes 5\. Give"):
        transform(PICTURE)


def test_a_grey_network_gets_grey_images():
    transform = transform_of(for_size(8, mean=(0.5,), std=(0.5,)))
    tensor = transform(Image.new("RGB", (6, 4), (255, 255, 255)))
    assert torch.equal(tensor, torch.ones(1, 8, 8))


def test_an_image_becomes_a_normalised_tensor():
    transform = transform_of(for_size(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    tensor = transform(Image.new("RGB", (6, 4), (255, 0, 0)))
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_a_network_for_grey_images_gets_one_channel():
    transform = transform_of(for_size(8, mean=(0.0,), std=(1.0,)))
    assert transform(Image.new("RGB", (6, 4), (255, 255, 255))).shape == (1, 8, 8)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_what_the_network_takes_and_follows_from_the_seed(policy):
    transform = transform_of(Preprocessing(24, 32, 40), policy)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(transform(PICTURE))
    assert results[0].shape == (3, 24, 32)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == (policy == "none")


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_what_comes_in_from_outside_has_the_colour_of_the_edge(shade):
    for size in ((3, 32, 32), (3, 24, 48), (1, 48, 24)):
        ones = (0.0,) * size[0], (1.0,) * size[0]
        transform = transform_of(Preprocessing(*size[1:], None, *ones), "light")
        for seed in range(40):
            torch.manual_seed(seed)
            picture = transform(Image.new("RGB", (40, 40), (shade,) * 3))
            assert picture.shape == size
            assert (picture * 255 - shade).abs().max() < 1e-3


def test_light_augmentation_moves_a_picture_a_little_in_every_way():
    picture = Image.new("L", (100, 60))
    picture.paste(255, (40, 20, 60, 40))
    transform = transform_of(Preprocessing(60, 100, None, (0.0,), (1.0,)), "light")
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(100.0), indexing="ij")
    places = []
    for seed in range(60):
        torch.manual_seed(seed)
        found = transform(picture)[0]
        area = found.sum()
        places.append([(columns * found).sum() / area, (rows * found).sum() / area, area])
    x, y, area = torch.tensor(places).unbind(dim=1)
    for values, low, high in ((x, 39.5, 59.5), (y, 23.5, 35.5), (area, 324, 484)):
        assert low - 0.5 < values.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < values.max() < high + 0.02 * high


def test_strong_augmentation_brings_in_the_mean():
    recipe = Preprocessing(32, 32, None, (0.5,) * 3, (1.0,) * 3)
    transform = transform_of(recipe, "randaugment")
    for seed in range(40):
        torch.manual_seed(seed)
        picture = transform(Image.new("RGB", (40, 40), (128, 128, 128)))
        assert picture.min() > -0.3  # black is -0.5


def test_digits_are_not_mirrored_by_the_light_policy():
    left = Image.new("L", (32, 32))
    left.paste(255, (0, 0, 8, 32))
    transform = transform_of(for_size(32, mean=(0.0,), std=(1.0,)), "light")
    for _ in range(50):
        picture = transform(left)[0]
        assert picture[:, :16].sum() > picture[:, 16:].sum()


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_labels_are_shares_of_the_two(mix):
    torch.manual_seed(0)
    samples = [(torch.full((3, 8, 8), float(label)), label) for label in (0, 1, 2, 3)]
    inputs, labels = Mixed(mix, 5, alpha=1.0)(samples)
    assert inputs.shape == (4, 3, 8, 8)
    assert labels.shape == (4, 5)
    assert torch.allclose(labels.sum(dim=1), torch.ones(4))
    means = inputs.mean(dim=(1, 2, 3))
    assert torch.allclose(means, labels @ torch.arange(5.0), atol=1e-5)


def test_what_is_not_known_is_refused():
    with pytest.raises(WrongArgument, match="there is no augmentation 'much'"):
        transform_of(Preprocessing(), "much")
    with pytest.raises(WrongArgument, match="batches can't be mixed by 'spoon'"):
        Mixed("spoon", 3)
