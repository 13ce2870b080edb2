"""What tells a run's data from other data."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from torchkeep.training.data import Data, labels_of, open_data
from torchkeep.training.data.identity import digest_of
from torchkeep.training.data.samples import labelled


@pytest.fixture
def photos(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (4, 4)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_the_same_images_elsewhere_are_the_same_data(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    before = open_data(photos)
    assert digest_of(before) == digest_of(open_data(tmp_path / "copy"))
    assert digest_of(before.transformed(abs, abs)) == digest_of(before)


def test_as_many_other_images_are_other_data(photos):
    before = digest_of(open_data(photos))
    one = photos / "cat" / "3.png"
    image = one.read_bytes()
    one.rename(photos / "cat" / "9.png")
    assert digest_of(open_data(photos)) != before
    (photos / "cat" / "9.png").rename(one)
    assert digest_of(open_data(photos)) == before
    one.write_bytes(image + b" ")
    assert digest_of(open_data(photos)) != before
    one.unlink()
    one.symlink_to("nowhere.png")
    assert digest_of(open_data(photos)) != before


def test_another_label_or_another_part_is_other_data():
    one, other = (TensorDataset(torch.zeros(2, 1), torch.tensor(x)) for x in ([0, 1], [1, 0]))
    digests = {
        digest_of(Data("x", ("a", "b"), *parts))
        for parts in ((one, other), (other, one), (one, one), (other, other), ([], one))
    }
    assert len(digests) == 5
    unknown = [(0, 1)], [(0, 0)]  # no list tells the labels: they are read
    assert len({digest_of(Data("x", ("a",), part, one)) for part in unknown}) == 2


def test_it_is_the_same_whether_or_not_somebody_has_asked_for_the_labels():
    part = labelled([(0, 1), (0, 0)])
    data = Data("x", ("a", "b"), part, part)
    before = digest_of(data)
    assert labels_of(part) == [1, 0]
    assert digest_of(data) == before
