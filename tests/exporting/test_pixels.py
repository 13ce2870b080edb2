"""An image prepared without PyTorch is what torchvision makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from exporting.samples import RECIPE, net
from torchkeep.errors import WrongArgument
from torchkeep.exporting import Subject, taking_pixels
from torchkeep.exporting.pixels import prepared
from torchkeep.training.data import Preprocessing, transform_of


def _picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("interpolation", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [None, 28, 25, 24, 21, 20])
@pytest.mark.parametrize("sides", [(40, 40), (41, 33), (33, 58), (24, 24), (9, 7), (200, 21)])
def test_an_image_is_prepared_to_the_bit_as_torchvision_does_it(
    interpolation: str, resize: int | None, sides: tuple[int, int]
) -> None:
    recipe = Preprocessing(24, 22, resize, RECIPE.mean, RECIPE.std, interpolation)
    picture = _picture(*sides)
    expected = transform_of(recipe)(picture).numpy()
    found = prepared(picture, recipe.to_json())
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_a_grey_recipe_makes_grey_of_colours() -> None:
    recipe = Preprocessing(24, 24, None, (0.5,), (0.25,))
    expected = transform_of(recipe)(_picture(30, 40)).numpy()
    assert np.array_equal(prepared(_picture(30, 40), recipe.to_json()), expected)


def test_a_network_with_its_normalisation_within_gives_the_same_of_pixels() -> None:
    subject = Subject(net(), "a net", preprocessing=RECIPE)
    within = taking_pixels(subject)
    picture = _picture(41, 30)
    pixels = prepared(picture, within.recipe() or {})
    assert pixels.dtype == np.uint8
    with torch.no_grad():
        expected = subject.model(transform_of(RECIPE)(picture)[None])
        found = within.model(torch.from_numpy(pixels)[None])
    assert torch.allclose(found, expected, atol=1e-6)
    assert (within.recipe() or {})["pixels"] is True
    assert "pixels" not in (subject.recipe() or {})


def test_without_a_recipe_there_are_no_pixels() -> None:
    subject = replace(Subject(net(), "a net"), preprocessing=None)
    with pytest.raises(WrongArgument, match="nothing tells how images are normalised for a net"):
        taking_pixels(subject)
