"""Labels and data sets."""

from __future__ import annotations

import random

import torch
from torch.utils.data import TensorDataset

from torchkeep.training.diagnosis import (
    Finding,
    classes_apart,
    constant_labels,
    dataset_items,
    empty_classes,
    labels_out_of_range,
    shared_items,
    uneven_classes,
)
from training.diagnosis.cases import CLASSES, digits

ANIMALS = ("cat", "dog", "eel")


def test_labels_that_begin_with_1_are_out_of_range():
    assert labels_out_of_range([1, 2, 3, 3], 3) == [
        Finding(
            "labels-range",
            "error",
            "2 of 4 labels are outside of 0..2: the labels go from 1 to 3",
            "Labels begin with 0: subtract 1.",
        )
    ]


def test_a_label_for_which_there_is_no_output_is_out_of_range():
    (found,) = labels_out_of_range([0, 1, 7], 3)
    assert found.text == "1 of 3 labels are outside of 0..2: the labels go from 0 to 7"
    assert "as many outputs as there are classes" in found.advice


def test_the_label_that_cross_entropy_leaves_out_is_no_error():
    assert labels_out_of_range([0, 1, -100], 2) == []


def test_labels_that_are_all_the_same_are_an_error():
    (found,) = constant_labels([2] * 40, 3)
    assert (found.check, found.text) == ("constant-labels", "all 40 labels are 2, of 3 classes")
    assert "shuffled" in found.advice
    assert constant_labels([2, 1], 3) == []


def test_classes_without_images_are_named():
    (found,) = empty_classes([0, 0, 2], ANIMALS)
    assert found.severity == "warning"
    assert found.text == "1 of 3 classes have no images: dog"
    assert "what is never seen is never predicted" in found.advice
    assert empty_classes([0, 1, 2], ANIMALS) == []


def test_classes_that_only_one_side_has_are_named():
    missing, unseen = classes_apart([0, 1], [1, 2], ANIMALS)
    assert missing.severity == "warning"
    assert missing.text == "1 of 2 classes have no image in validation: cat"
    assert unseen.severity == "error"
    assert unseen.text == "1 class of the validation data have no image to train on: eel"
    assert classes_apart([0, 1, 2], [2, 1, 0], ANIMALS) == []


def test_classes_of_very_different_size_are_told_with_what_guessing_would_give():
    (found,) = uneven_classes([0] * 90 + [1] * 8 + [2] * 2, ANIMALS)
    assert found.text == (
        "the class cat has 90 images and eel 2: who always answers the former is right in 90%"
    )
    assert "WeightedRandomSampler" in found.advice
    assert uneven_classes([0] * 9 + [1], ANIMALS) == []


def test_the_labels_of_the_digits_are_all_right():
    labels = digits()[1].tolist()
    train, validation = labels[:1200], labels[1200:]
    assert labels_out_of_range(labels, 10) == []
    assert constant_labels(labels, 10) == []
    assert empty_classes(labels, CLASSES) == []
    assert uneven_classes(labels, CLASSES) == []
    assert classes_apart(train, validation, CLASSES) == []


# --- Data sets ---------------------------------------------------------------------------------


def test_a_data_set_of_digits_is_all_right():
    assert dataset_items(TensorDataset(*digits()), 10) == []


def test_an_empty_data_set_is_an_error():
    (found,) = dataset_items([], 10)
    assert (found.text, found.advice) == ("the data set is empty", "Check its folder.")


def test_an_item_that_cannot_be_read_is_named():
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise OSError("image file is truncated")

    (found,) = dataset_items(Broken(), 10)
    assert found.text == "item 0 can't be read: OSError: image file is truncated"


def test_items_that_are_no_tensor_and_number_are_errors():
    image = torch.zeros(1, 8, 8)
    for item, text in (
        (image, "item 0 is a Tensor, and no pair of an image and a label"),
        (("picture", 1), "item 0 has an image of type str, and no tensor: a transform is missing"),
        ((image, "cat"), "item 0 has a label of type str, and no number"),
        (
            (image, torch.zeros(10)),
            "item 0 has a label of shape [10] and torch.float32, and no number",
        ),
    ):
        (found,) = dataset_items([item], 10)
        assert (found.check, found.text) == ("dataset-item", text)


def test_items_of_different_shape_are_an_error():
    (found,) = dataset_items([(torch.zeros(1, 8, 8), 0), (torch.zeros(1, 8, 9), 1)], 2)
    assert found.text == "images differ in shape: item 0 has [1, 8, 8], item 1 [1, 8, 9]"


def test_labels_of_a_data_set_are_looked_at_too():
    images, labels = digits()
    (found,) = dataset_items(TensorDataset(images, labels + 1), 10)
    assert found.check == "labels-range"
    (found,) = dataset_items(TensorDataset(images, labels * 0), 10)
    assert found.check == "constant-labels"


def test_a_look_at_items_draws_nothing_from_the_generators():
    class Augmented(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.rand(1) + random.random(), label

    before = torch.get_rng_state(), random.getstate()
    assert dataset_items(Augmented(*digits()), 10) == []
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_tensors_that_are_also_trained_on_are_found():
    images, labels = digits()
    train = TensorDataset(images[:100], labels[:100])
    (found,) = shared_items(train, TensorDataset(images[98:200], labels[98:200]))
    assert found.severity == "error"
    assert found.text == (
        "2 of 102 validation images are also trained on: validation item 0 is training item 98"
    )
    assert shared_items(train, TensorDataset(images[100:], labels[100:])) == []
