"""A batch before it enters the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkeep.training.diagnosis import (
    constant_images,
    examine_batch,
    not_finite,
    not_normalised,
    wrong_device,
    wrong_dtype,
    wrong_shape,
)
from training.diagnosis.cases import MEAN, STD, batch, checks, network

MEANS, STDS = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def coloured(number=16):
    """Return images of digits in 0..1 `[n, 3, 8, 8]`."""
    return batch(number)[0].mul(STD[0]).add(MEAN[0]).clamp(0, 1).repeat(1, 3, 1, 1)


def normalised(images):
    return (images - MEANS.view(3, 1, 1)) / STDS.view(3, 1, 1)


def test_a_batch_of_digits_as_it_should_be_gives_no_finding():
    assert examine_batch(batch()[0], network(), mean=MEAN, std=STD) == []
    assert not_normalised(normalised(coloured())) == []


@pytest.mark.parametrize("brightness", [0.15, 1.0])
@pytest.mark.parametrize("is_inverted", [False, True])
def test_dark_and_bright_images_are_as_good(brightness, is_inverted):
    images = coloured() * brightness
    assert not_normalised(normalised(1 - images if is_inverted else images)) == []


def test_bytes_that_nobody_divided_are_an_error():
    (found,) = not_normalised((coloured() * 255).round())
    assert (found.check, found.severity) == ("not-normalised", "error")
    assert found.text.startswith("values are those of bytes, 0..255: per channel the mean is 7")
    assert "values go from 0 to 255; images in 0..1 with this mean and std give -2.12" in found.text
    assert "Divide by 255" in found.advice


def test_values_from_0_to_1_are_not_normalised():
    (found,) = not_normalised(coloured())
    assert found.severity == "warning"
    assert found.text.startswith("values are in 0..1, and not normalised: ")
    assert "v2.Normalize(mean, std)" in found.advice


def test_values_of_another_mean_and_std_are_told():
    (found,) = not_normalised(coloured() * 2 - 1)
    assert found.text.startswith("values are in -1..1, as from a mean and std of 0.5: ")
    (found,) = not_normalised(normalised(coloured()), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert found.text.startswith("values are out of what normalised images have: ")


def test_normalising_twice_is_told():
    (found,) = not_normalised(normalised(normalised(coloured())))
    assert found.text.startswith("values are out of what normalised images have: ")
    assert "normalised twice" in found.advice


def test_dividing_by_255_twice_is_told():
    (found,) = not_normalised(normalised(coloured() / 255))
    assert found.text.startswith("there is hardly any contrast: ")
    assert "divided by 255 twice" in found.advice


def test_weights_that_expect_values_from_0_to_1_get_them():
    assert not_normalised(coloured(), mean=(0, 0, 0), std=(1, 1, 1)) == []
    (found,) = not_normalised(coloured() * 255, mean=(0, 0, 0), std=(1, 1, 1))
    assert found.severity == "error"


def test_nan_and_infinity_are_counted():
    images = coloured()
    images[3, 0, 0, 0], images[5, 1] = torch.inf, torch.nan
    (found,) = not_finite(images)
    assert found.text == "64 NaNs and 1 infinite value in 2 of 16 samples"
    assert "zero spread" in found.advice
    assert not_finite(coloured()) == []


def test_images_that_show_nothing_are_counted():
    images = coloured()
    images[2] = 0.5
    (found,) = constant_images(images)
    assert found.text == "1 of 16 images in the batch have the same value all over"
    assert found.severity == "warning"
    (found,) = constant_images(torch.zeros(4, 3, 8, 8))
    assert found.severity == "error"
    assert constant_images(coloured()) == []


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((3, 8, 8), "the batch has the shape [3, 8, 8]; a network for images takes [n, 3, h, w]"),
        (
            (4, 8, 8, 3),
            "the batch has the shape [4, 8, 8, 3]: the channels come last, and should be second",
        ),
        ((4, 1, 8, 8), "the batch has 1 channel, and the network takes 3"),
        ((4, 4, 8, 8), "the batch has 4 channels, and the network takes 3"),
    ],
)
def test_a_batch_of_another_shape_is_an_error(shape, text):
    (found,) = wrong_shape(torch.zeros(shape))
    assert (found.check, found.severity, found.text) == ("input-shape", "error", text)
    assert found.advice


def test_a_shape_is_right_in_any_memory_format():
    assert wrong_shape(coloured().to(memory_format=torch.channels_last)) == []


def test_whole_numbers_and_other_precisions_are_an_error():
    (found,) = wrong_dtype(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), network())
    assert found.text == "the batch is torch.uint8, and the model torch.float32"
    assert "scale=True" in found.advice
    (found,) = wrong_dtype(batch()[0].double(), network())
    assert found.advice == "Use inputs.to(torch.float32)."
    with torch.autocast("cpu", torch.bfloat16):
        assert wrong_dtype(batch()[0].bfloat16(), network()) == []


def test_a_batch_on_another_device_is_an_error():
    (found,) = wrong_device(torch.zeros(1, device="meta"), network())
    assert found.text == "the batch is on meta, and the model on cpu"
    assert found.advice == "Use inputs.to('cpu')."
    (found,) = wrong_device(torch.zeros(1), nn.Linear(2, 2, device="meta"))
    assert "load the weights before" in found.advice


def test_all_checks_of_a_batch_in_one_call():
    images = batch()[0]
    images[0, 0, 0, 0] = torch.nan
    found = examine_batch(images.double(), network(), mean=MEAN, std=STD)
    assert checks(found) == ["input-dtype", "input-values"]
