"""What a classifier says of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from torchkeep.errors import DamagedFile, FileMissing, FileProblem, WrongArgument
from torchkeep.training.classifier import Card
from torchkeep.training.data import Preprocessing, read_image, transform_of
from torchkeep.training.prediction import predict
from training.samples import NET, Net

CARD = Card(NET, ("a", "b", "c", "d", "e"), Preprocessing(12, 12, None))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.new("L", (20, 16), 30 * number).save(path)
    return paths


def test_images_are_prepared_as_the_card_says_and_told_in_order(images: list[Path]) -> None:
    torch.manual_seed(1)
    model = Net()
    found = list(predict(model, CARD, images, top=5, batch_size=3))
    assert [item.path for item in found] == images
    assert model.training
    model.eval()
    for item in found:
        inputs = transform_of(CARD.preprocessing)(read_image(item.path))[None]
        shares = model(inputs).softmax(dim=1)[0]
        assert item.classes[0] == CARD.classes[int(shares.argmax())]
        assert sorted(item.probabilities, reverse=True) == list(item.probabilities)
        assert sum(item.probabilities) == pytest.approx(1.0)
        assert item.probabilities[0] == pytest.approx(shares.max().item(), abs=1e-6)


def test_no_more_classes_are_told_than_asked_for(images: list[Path]) -> None:
    assert len(next(predict(Net(), CARD, images, top=2)).classes) == 2
    assert len(next(predict(Net(), CARD, images, top=99)).classes) == 5


def test_what_is_no_image_is_named(images: list[Path]) -> None:
    images[3].write_bytes(b"nonsense")
    with pytest.raises(DamagedFile, match=r"3\.png: it can't be read as an image"):
        list(predict(Net(), CARD, images))
    with pytest.raises(FileMissing, match="there is no such file"):
        list(predict(Net(), CARD, ["nowhere.png"]))


def test_less_than_one_class_or_image_is_refused(images: list[Path]) -> None:
    for options in ({"top": 0}, {"top": -1}, {"batch_size": 0}):
        (name, value), *_ = options.items()
        with pytest.raises(WrongArgument, match=f"{name} is {value}, and has to be at least 1"):
            list(predict(Net(), CARD, images, **options))


def test_what_is_no_image_is_left_out_if_somebody_is_told(images: list[Path]) -> None:
    images[3].write_bytes(b"nonsense")
    told: list[FileProblem] = []
    paths = [images[0].parent, *images]
    found = list(predict(Net(), CARD, paths, batch_size=1, failed=told.append))
    assert [item.path for item in found] == [path for path in images if path != images[3]]
    assert str(told[0]).endswith(": it is no image, but a folder. Name the images in it.")
    assert "it can't be read as an image" in str(told[1])
