"""Data by its name."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from torchkeep.errors import FileMissing, WrongArgument
from torchkeep.training.data import Data, ImageFolder, labels_of, open_data, open_validation


def fill(folder, **counts):
    """Write so many images into a folder of each class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), 10 * number).save(folder / name / f"{number}.png")
    return folder


def test_a_folder_of_classes_is_split_for_validation(tmp_path):
    data = open_data(fill(tmp_path, cat=10, dog=20))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val)) == (24, 6)
    assert sorted(labels_of(data.val)) == [0, 0, 1, 1, 1, 1]
    train, val = ({path for path, _ in part.samples} for part in (data.train, data.val))
    assert not train & val


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_a_folder_that_is_split_is_left_so_and_labels_keep_their_meaning(tmp_path, name):
    fill(tmp_path / "train", ant=2, bee=2, cat=2)
    fill(tmp_path / name, cat=1, bee=1)  # none of the first class
    data = open_data(tmp_path)
    assert data.classes == ("ant", "bee", "cat")
    assert (len(data.train), labels_of(data.val)) == (6, [1, 2])
    assert [label for _, label in (data.val[0], data.val[1])] == [1, 2]


def test_a_class_that_only_validation_has_is_refused(tmp_path):
    fill(tmp_path / "train", ant=2, bee=2)
    fill(tmp_path / "val", cat=1, ant=1)
    with pytest.raises(WrongArgument, match="has images of 1 class that is not known here: cat"):
        open_data(tmp_path)


@pytest.mark.parametrize("name", ["Bee", "caf\u00e9"])
def test_a_class_that_is_spelt_otherwise_is_told_by_what_it_is_meant_for(tmp_path, name):
    spelt = {"bee": 2, "cafe\u0301": 2}
    fill(tmp_path / "train", **spelt)
    fill(tmp_path / "val", **{name: 1})
    advice = {"Bee": "Is 'Bee' what is called 'bee' here? Rename it."}.get(
        name, r"Is 'caf\xe9' what is called 'cafe\u0301' here? Rename it."
    )
    with pytest.raises(WrongArgument, match=re.escape(advice)):
        open_data(tmp_path)


def test_a_model_s_classes_are_kept_whatever_the_folder_has(tmp_path):
    data = open_data(fill(tmp_path, dog=5, ant=5), classes=["dog", "cat", "ant"])
    assert data.classes == ("dog", "cat", "ant")
    assert set(labels_of(data.train)) == {0, 2}
    with pytest.raises(WrongArgument, match="2 classes that are not known here: ant, dog"):
        open_data(tmp_path, classes=["cat"])


def test_broken_images_are_left_out_and_listed(tmp_path):
    fill(tmp_path, cat=10, dog=10)
    for number in (3, 7):
        (tmp_path / "dog" / f"{number}.png").write_bytes(b"nonsense")
    seen = []
    data = open_data(tmp_path, skip_broken=True, progress=lambda *args: seen.append(args))
    assert len(data.train) + len(data.val) == 18
    assert sorted(text.split(":")[0][-9:] for text in data.skipped) == ["dog/3.png", "dog/7.png"]
    assert seen[-1] == (20, 20)
    assert len(open_data(tmp_path).train) == 16


def test_a_part_or_a_class_of_which_nothing_can_be_read_is_refused(tmp_path):
    fill(tmp_path / "train", ant=2, bee=2)
    fill(tmp_path / "val", ant=2, bee=1)
    (tmp_path / "val" / "bee" / "0.png").write_bytes(b"nonsense")
    assert len(open_data(tmp_path, skip_broken=True).val) == 2  # as if it had no bees
    for number in (0, 1):
        (tmp_path / "val" / "ant" / f"{number}.png").write_bytes(b"nonsense")
    with pytest.raises(WrongArgument, match="no image to validate on can be read, of 3; the last"):
        open_data(tmp_path, skip_broken=True)
    for number in (0, 1):
        (tmp_path / "train" / "bee" / f"{number}.png").unlink()
        (tmp_path / "train" / "bee" / f"{number}.png").symlink_to("nowhere")
    with pytest.raises(
        WrongArgument, match=r"no image to train on can be read of 1 class: bee\. Copy the images"
    ):
        open_data(tmp_path, skip_broken=True)


def test_a_folder_without_images_is_no_matter_to_validation_and_to_a_model(tmp_path):
    fill(tmp_path / "train", ant=2, bee=2)
    fill(tmp_path / "val", ant=2, notes=0)
    assert labels_of(open_data(tmp_path).val) == [0, 0]
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(WrongArgument, match="1 folder of 3 holds no images: eel"):
        open_data(tmp_path)
    assert open_data(tmp_path, classes=["bee", "ant"]).classes == ("bee", "ant")


def test_folders_of_a_split_may_have_capitals(tmp_path):
    fill(tmp_path / "Train", ant=2, bee=2)
    fill(tmp_path / "TEST", ant=1, bee=1)
    data = open_data(tmp_path)
    assert (data.classes, len(data.train), len(data.val)) == (("ant", "bee"), 4, 2)


def test_digits_are_there_without_a_network():
    data = open_data("digits")
    assert data.classes == tuple("0123456789")
    assert len(data.train) + len(data.val) == 1797
    picture, label = data.train[0]
    assert (picture.size, label) == ((8, 8), 0)
    assert labels_of(data.val) == [data.val[at][1] for at in range(len(data.val))]


def test_a_data_set_of_torchvision_that_is_not_here_says_what_to_do(tmp_path):
    with pytest.raises(WrongArgument, match="FashionMNIST can't be opened") as caught:
        open_data("FashionMNIST", root=tmp_path)
    assert "--download" in str(caught.value)


def test_a_data_set_of_torchvision_is_opened_by_its_name(tmp_path):
    data = open_data("FakeData", root=tmp_path)  # it has one part, and takes no root
    assert len(data.train) + len(data.val) == 1000


def test_a_data_set_of_torchvision_may_call_its_parts_otherwise(tmp_path):
    for part, count in (("train", 2), ("val", 1)):
        folders = {"n01440764": count, "n02102040": count}
        fill(tmp_path / "imagenette2" / part, **folders)
        for path in (tmp_path / "imagenette2" / part).glob("*/*.png"):
            path.rename(path.with_suffix(".JPEG"))
    data = open_data("Imagenette", root=tmp_path)
    assert data.classes[:2] == ("tench", "English springer")
    assert (len(data.train), len(data.val)) == (4, 2)


@pytest.mark.parametrize("name", ["OxfordIIITPet", "FGVCAircraft", "Country211", "DTD", "Food101"])
def test_what_is_not_here_is_told_as_missing_whatever_its_parts_are_called(name, tmp_path):
    with pytest.raises(WrongArgument, match=f"{name} can't be opened in .*[Nn]ot found"):
        open_data(name, root=tmp_path)


def test_a_name_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(WrongArgument, match=r"called 'FashonMNIST'\. Is it FashionMNIST"):
        open_data("FashonMNIST")
    with pytest.raises(FileMissing, match="there is no such folder"):
        open_data("no/where")


OWN = """
import torch
from torch.utils.data import TensorDataset
def two():
    return part(8), part(4)
def one():
    return part(10)
def wrong():
    return 3
def empty():
    return part(8), part(0)
def unlabelled():
    return [(0, "cat")], [(0, "dog")]
def part(count):
    data = TensorDataset(torch.zeros(count, 3, 4, 4), torch.arange(count) % 2)
    data.classes = ["off", "on"]
    return data
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_data_of_mine"


def test_one_s_own_function_gives_data_sets(own):
    data = open_data(f"{own}:two")
    assert (data.classes, len(data.train), len(data.val)) == (("off", "on"), 8, 4)
    data = open_data(f"{own}:one")
    assert (len(data.train), len(data.val)) == (8, 2)
    ready = data.transformed(lambda _: 1 / 0, lambda _: 1 / 0)  # tensors stay as they are
    assert ready.train[0][0].shape == (3, 4, 4)


def test_a_function_that_gives_something_else_is_refused(own):
    with pytest.raises(WrongArgument, match="gave a int"):
        open_data(f"{own}:wrong")
    with pytest.raises(WrongArgument, match=":empty has nothing to validate on"):
        open_data(f"{own}:empty")
    with pytest.raises(WrongArgument, match="sample 0 is a tuple, and no pair of an image and a n"):
        open_data(f"{own}:unlabelled")
    with pytest.raises(WrongArgument, match="can't be imported"):
        open_data(f"{own}:missing")


def test_pictures_go_through_the_transform_of_their_part(tmp_path):
    data = open_data(fill(tmp_path, cat=5, dog=5)).transformed(lambda _: "train", lambda _: "val")
    assert isinstance(data, Data)
    assert (data.train[0][0], data.val[0][0]) == ("train", "val")
    assert isinstance(data.train.samples, ImageFolder)


# --- For validation alone ----------------------------------------------------------------------


def test_the_part_for_validation_is_what_a_model_is_judged_on(tmp_path):
    fill(tmp_path / "both" / "train", ant=2, bee=2)
    fill(tmp_path / "both" / "val", bee=3)
    data = open_validation(tmp_path / "both", classes=("ant", "bee"))
    assert (len(data.train), labels_of(data.val)) == (4, [1, 1, 1])
    whole = open_validation(tmp_path / "both", classes=("ant", "bee"), whole=True)
    assert (len(whole.train), len(whole.val)) == (0, 7)


def test_a_folder_may_have_a_part_for_validation_alone(tmp_path):
    fill(tmp_path / "Val", bee=3)
    data = open_validation(tmp_path, classes=("ant", "bee"))
    assert (len(data.train), labels_of(data.val)) == (0, [1, 1, 1])
    with pytest.raises(WrongArgument, match="has images of 1 class that is not known here: Val"):
        open_data(tmp_path, classes=("ant", "bee"))


def test_a_class_that_is_called_test_is_one(tmp_path):
    fill(tmp_path, test=4)
    data = open_validation(tmp_path, classes=("test",))
    assert (len(data.train), labels_of(data.val)) == (3, [0])


def test_one_image_of_each_class_can_be_judged(tmp_path):
    fill(tmp_path, ant=1, bee=1)
    with pytest.raises(WrongArgument, match="no class has two images"):
        open_validation(tmp_path)
    assert labels_of(open_validation(tmp_path, whole=True).val) == [0, 1]
