"""Image files."""

from __future__ import annotations

import shutil

import numpy
import pytest
from PIL import Image

from torchkeep.training.diagnosis import (
    broken_images,
    conflicting_labels,
    duplicates,
    examine_samples,
    look_at,
    tiny_images,
)
from training.diagnosis.cases import CLASSES, checks, digits


def picture(number, size=64):
    """Return a digit in grey, as large as photographs are."""
    image = digits()[0][number, 0].mul(0.376).add(0.305).mul(255).clamp(0, 255).byte().numpy()
    return Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def samples(tmp_path):
    found = []
    for number in range(120):
        label = int(digits()[1][number])
        (tmp_path / str(label)).mkdir(exist_ok=True)
        path = tmp_path / str(label) / f"{number}.png"
        picture(number).save(path)
        found.append((path, label))
    return found


def test_images_as_they_should_be_give_no_finding(samples):
    train, validation = samples[:80], samples[80:]
    assert examine_samples(train, CLASSES, validation=validation, input_size=64) == []


def test_what_is_noted_of_a_file_is_what_it_shows(samples):
    (first,) = look_at(samples[:1])
    assert (first.path, first.label, first.problem) == (*samples[0], "")
    assert (first.size, first.mode, len(first.thumbnail)) == ((64, 64), "L", 17 * 16)


def test_broken_files_are_counted_and_named(samples):
    empty, cut, text = (path for path, _ in samples[:3])
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-400])
    text.write_text("<html>")
    (found,) = broken_images(look_at(samples))
    assert (found.check, found.severity) == ("broken-images", "error")
    assert found.text.startswith("3 of 120 images can't be read: 0.png (is empty), 1.png (")
    assert "UnidentifiedImageError" in found.text
    assert "ends the training" in found.advice


def test_images_of_one_colour_are_named(samples):
    Image.new("RGB", (64, 64), (3, 5, 7)).save(samples[4][0])
    (found,) = broken_images(look_at(samples))
    assert found.text == "1 of 120 images are of one colour: 4.png"
    assert found.severity == "warning"


def test_images_of_16_bits_are_looked_at_as_they_are_trained_on(samples):
    values = numpy.arange(4096, dtype=numpy.uint16).reshape(64, 64) * 16
    Image.fromarray(values).save(samples[5][0])
    assert broken_images(look_at(samples)) == []  # Pillow's own conversion makes it white


def test_images_far_smaller_than_the_input_are_a_note(samples):
    pictures = look_at(samples)
    (found,) = tiny_images(pictures, 224)
    assert found.severity == "note"
    assert found.text == (
        "120 of 120 images are less than half as high or wide as the network's input of 224 "
        "pixels; half of all have 64 or less"
    )
    assert tiny_images(pictures, 128) == []


def test_files_that_are_on_both_sides_are_an_error(samples, tmp_path):
    copied = tmp_path / "copy.png"
    shutil.copy(samples[3][0], copied)
    (found,) = duplicates(look_at(samples[:80]), look_at([(copied, 1), *samples[80:]]))
    assert (found.check, found.severity) == ("duplicates", "error")
    assert found.text.startswith("1 of 41 validation images are files that are trained on: ")
    assert found.text.endswith(f"copy.png, {samples[3][1]}/3.png")


def test_files_with_the_same_pixels_are_an_error(samples, tmp_path):
    other = tmp_path / "other.bmp"
    picture(3).save(other)
    (found,) = duplicates(look_at(samples[:80]), look_at([(other, 1), *samples[80:]]))
    assert found.severity == "error"
    assert "1 of 41 validation images have the pixels of one that is trained on" in found.text


def test_an_image_that_was_compressed_again_and_scaled_is_a_note(samples, tmp_path):
    nearly = tmp_path / "nearly.jpg"
    picture(3).resize((56, 56)).save(nearly, quality=80)
    pictures = look_at([(nearly, 1), *samples[80:]])
    (found,) = duplicates(look_at(samples[:80]), pictures)
    assert (found.check, found.severity) == ("near-duplicates", "note")
    assert found.text.endswith(f"nearly.jpg, {samples[3][1]}/3.png")
    assert duplicates(look_at(samples[:80]), pictures, near=False) == []


def test_no_two_digits_pass_for_nearly_the_same(tmp_path):
    files = [(tmp_path / f"{number}.bmp", 0) for number in range(600)]
    for number, (path, _) in enumerate(files):
        picture(number, 32).save(path)
    found = duplicates(look_at(files[:400]), look_at(files[400:]))
    assert found == []


def test_equal_images_with_different_labels_are_told(samples):
    path, label = samples[3]
    wrong = path.parent.parent / "wrong.png"
    shutil.copy(path, wrong)
    (found,) = conflicting_labels(look_at([*samples, (wrong, (label + 1) % 10)]), CLASSES)
    assert found.text == (
        f"1 image with another label than an equal one: 3.png is {label}, and wrong.png with the "
        f"same pixels {(label + 1) % 10}"
    )
    assert conflicting_labels(look_at(samples), CLASSES) == []


def test_all_checks_in_one_call_give_the_worst_first(samples):
    samples[0][0].write_bytes(b"")
    found = examine_samples(
        [*samples[:80], (samples[1][0], 10)],
        (*CLASSES, "ten", "eleven"),
        validation=[samples[1], *samples[80:]],
        input_size=224,
    )
    assert checks(found) == [
        "broken-images",
        "duplicates",
        "empty-classes",
        "uneven-classes",
        "validation-classes",
        "conflicting-labels",
        "tiny-images",
    ]
    assert [item.severity for item in found] == ["error"] * 2 + ["warning"] * 4 + ["note"]
