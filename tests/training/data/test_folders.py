"""Images in folders, and labels that keep their meaning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from torchkeep.errors import DamagedFile, FileMissing, FileUnreadable, WrongArgument
from torchkeep.training.data import ImageFolder


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
    with pytest.raises(WrongArgument, match=r"its folders hold no images\. Images are recog"):
        ImageFolder(tmp_path / "empty")


def test_a_folder_without_images_is_no_class_and_is_not_passed_over(folder):
    for name in ("3", "new\nline"):
        (folder / name).mkdir()
    (folder / "3" / "x.heic").write_bytes(b"")
    with pytest.raises(WrongArgument, match=r"2 folders of 5 hold no images: 3, new\\nline\. Add"):
        ImageFolder(folder)
    assert ImageFolder(folder, skip_empty=True).classes == ("1", "2", "10")
    assert ImageFolder(folder, classes=["3", "1"]).classes == ("3", "1")


def test_folders_that_systems_make_are_no_classes(folder):
    for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "lost+found"):
        (folder / name).mkdir()
        Image.new("L", (2, 2)).save(folder / name / "x.png")
    (folder / "1" / "__MACOSX").mkdir()
    Image.new("L", (2, 2)).save(folder / "1" / "__MACOSX" / "x.png")
    assert (ImageFolder(folder).classes, len(ImageFolder(folder))) == (("1", "2", "10"), 6)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_what_only_looks_like_an_image_file_is_named_and_never_waited_for(folder):
    place = folder / "1"
    (place / "a.png").symlink_to("nowhere.png")
    (place / "b.png").symlink_to("b.png")
    (place / "c.png").mkdir()
    os.mkfifo(place / "d.png")
    data = ImageFolder(folder)
    assert [path.name for path, _ in data.samples[2:6]] == ["a.png", "b.png", "c.png", "d.png"]
    for at, kind, text in (
        (2, FileMissing, r"a\.png: it is a link to nowhere\.png, and nothing is there\. Put the"),
        (3, FileUnreadable, r"b\.png: Too many levels of symbolic links\. Look at its permissions"),
        (4, FileUnreadable, r"c\.png: it is no image, but a folder\. Name the images"),
        (5, FileUnreadable, r"d\.png: it is no image, but a pipe, a socket or a device"),
    ):
        with pytest.raises(kind, match=text):
            data[at]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read_is_named(folder):
    (folder / "1" / "9.png").chmod(0)
    with pytest.raises(FileUnreadable, match=r"9\.png: it may not be read\. Look at its"):
        ImageFolder(folder)[0]
    (folder / "1").chmod(0)
    try:
        with pytest.raises(FileUnreadable, match=r"1: the folder can't be read \(Permission"):
            ImageFolder(folder)
    finally:
        (folder / "1").chmod(0o700)


def test_linked_folders_are_looked_into_once(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.new("L", (2, 2)).save(other / "x.png")
    (folder / "1" / "more").symlink_to(other)
    (folder / "1" / "back").symlink_to(folder / "1")
    names = [path.name for path, label in ImageFolder(folder).samples if label == 0]
    assert names == ["9.png", "10.png", "x.png"]


def test_an_image_that_goes_while_it_is_needed_is_told_with_what_to_do(folder):
    data = ImageFolder(folder)
    (folder / "1" / "9.png").unlink()
    with pytest.raises(FileMissing, match=r"9\.png: the image has gone .*\. Put it back: a run"):
        data[0]
    (folder / "1" / "10.png").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"Copy it again, or remove it; torchkeep train --skip-b"):
        data[1]


def test_names_that_differ_never_change_places(tmp_path):
    names = ["a2", "b1", "class", "class0", "class00", "01", "1", "10"]
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "x.png")
    expected = ("01", "1", "10", "a2", "b1", "class", "class0", "class00")
    assert ImageFolder(tmp_path).classes == expected


def test_a_class_whose_name_is_no_text_is_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        Path(os.fsdecode(folder)).mkdir()
    except OSError:
        pytest.skip("this system has no such names")
    Image.new("L", (2, 2)).save(os.fsdecode(folder) + "/x.png")
    with pytest.raises(WrongArgument, match="has a name that is no text"):
        ImageFolder(tmp_path)


def test_images_of_folders_below_a_class_are_its_images(folder):
    (folder / "2" / "more" / ".cache").mkdir(parents=True)
    Image.new("L", (2, 2)).save(folder / "2" / "more" / "1.png")
    Image.new("L", (2, 2)).save(folder / "2" / "more" / ".cache" / "2.png")
    assert len(ImageFolder(folder)) == 7


def test_a_file_that_is_no_image_is_named(folder):
    path = folder / "1" / "9.png"
    whole = path.read_bytes()
    for bad, reason in (
        (b"", "it is empty"),
        (b"nonsense", "it is none of PNG, JPEG, BMP"),
        (whole[: len(whole) // 2], ""),
        (b"\0" * 1000, "it is none of PNG"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DamagedFile, match=r"9\.png: it can't be read as an image \(" + reason):
            ImageFolder(folder)[0]
