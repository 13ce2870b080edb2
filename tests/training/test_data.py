"""Images in folders, and labels that keep their meaning."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from torchkeep.errors import FileMissing, WrongArgument
from torchkeep.training.data import ImageFolder, image_transform


@pytest.fixture
def folder(tmp_path):
    for shade, name in enumerate(["10", "2", "1"]):
        (tmp_path / name).mkdir()
        for number in (10, 9):
            image = Image.new("L", (6, 4), 80 * shade)
            image.save(tmp_path / name / f"{number}.png")
    (tmp_path / "1" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_numbers_are_ordered_as_numbers(folder):
    data = ImageFolder(folder)
    assert data.classes == ("1", "2", "10")
    assert [(path.parent.name, path.name, label) for path, label in data.samples][:3] == [
        ("1", "9.png", 0),
        ("1", "10.png", 0),
        ("2", "9.png", 1),
    ]
    assert len(data) == 6


def test_a_label_is_a_place_in_the_given_names(folder):
    data = ImageFolder(folder, classes=["10", "1"])
    assert [label for _, label in data.samples] == [0, 0, 1, 1]
    image, label = data[2]
    assert (image.mode, image.getpixel((0, 0)), label) == ("RGB", (160, 160, 160), 1)


def test_a_new_folder_does_not_move_the_labels(folder):
    before = ImageFolder(folder, classes=["1", "2", "10"]).samples
    (folder / "0").mkdir()
    assert ImageFolder(folder, classes=["1", "2", "10"]).samples == before


def test_what_is_missing_is_refused(folder, tmp_path):
    with pytest.raises(FileMissing, match="there is no such folder"):
        ImageFolder(folder / "nowhere")
    with pytest.raises(FileMissing, match="7: there is no folder of this class"):
        ImageFolder(folder, classes=["7"])
    with pytest.raises(WrongArgument, match="there is no folder in it"):
        ImageFolder(folder / "1")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(WrongArgument, match="its folders hold no images"):
        ImageFolder(tmp_path / "empty")


def test_an_image_becomes_a_normalised_tensor():
    transform = image_transform(8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tensor = transform(Image.new("RGB", (6, 4), (255, 0, 0)))
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_augmentation_draws_and_its_absence_does_not():
    image = Image.linear_gradient("L").convert("RGB")
    augmented = image_transform(16, augment=True)
    assert not torch.equal(augmented(image), augmented(image))
    plain = image_transform(16)
    assert torch.equal(plain(image), plain(image))
