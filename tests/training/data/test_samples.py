"""Labels of samples: known by a list, or read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset, random_split

from torchkeep.errors import WrongArgument
from torchkeep.training.data import Relabelled, Transformed, labels_of
from torchkeep.training.data.samples import check_labels, known_labels, labelled


class Counting(Dataset):
    """Has labels 0, 1, 2, 0, ... and counts how often a sample is read."""

    def __init__(self, count=6, **lists):
        self.count, self.num_read = count, 0
        self.__dict__.update(lists)

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        self.num_read += 1
        return torch.rand(1), at % 3


LABELS = [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "lists",
    [
        {"targets": LABELS},  # MNIST, CIFAR10, ImageFolder
        {"labels": np.array(LABELS, dtype=np.uint8)},  # STL10, SVHN
        {"_labels": torch.tensor(LABELS)},  # Flowers102, Food101, DTD
        {"_samples": [(Path("x"), label) for label in LABELS]},  # GTSRB, StanfordCars
        {"samples": [("x", label) for label in LABELS]},
        {"y": LABELS, "targets": ["a.xml"] * 6},  # Caltech101; VOC's targets are files
    ],
)
def test_a_list_of_labels_is_taken_and_no_sample_read(lists):
    data = Counting(**lists)
    assert labels_of(data) == LABELS
    assert labels_of(Subset(data, [5, 0])) == [2, 0]
    assert data.num_read == 0


@pytest.mark.parametrize(
    "lists",
    [
        {},
        {"targets": [7]},  # of something else
        {"targets": torch.tensor([[7, 7]] * 6)},  # CelebA, QMNIST
        {"labels": [0.5] * 6},
        {"samples": [(7, 7)] * 6},
        {"targets": [7] * 6, "target_transform": lambda label: label},
    ],
)
def test_what_is_no_list_of_the_samples_labels_is_not_taken_for_one(lists):
    data = Counting(**lists)
    assert known_labels(data) is None
    assert labels_of(data) == LABELS


def test_labels_without_a_list_are_read_once_and_draw_nothing():
    data = Counting()
    kept = labelled(data)
    part = Transformed(Subset(kept, [4, 5]), lambda picture: 1 / 0)
    before = torch.get_rng_state()
    for _ in range(3):
        assert labels_of(part) == [1, 2]
        assert labels_of(Relabelled(kept, [9, 8, 7])) == [9, 8, 7, 9, 8, 7]
    assert data.num_read == 6
    assert torch.equal(torch.get_rng_state(), before)
    assert labelled(kept) is kept
    one, _ = random_split(Counting(), [2, 4])
    labels_of(one)
    assert one.dataset.num_read == 2


def test_labels_of_tensors_are_known():
    data = TensorDataset(torch.zeros(3, 1), torch.tensor([2, 0, 1]))
    assert known_labels(data) == [2, 0, 1]
    assert labelled(data) is data


@pytest.mark.parametrize(
    "sample", [(0, "cat"), (0, torch.zeros(2)), (0, None), (0, 0.5), (0, float("inf")), 3, (0,)]
)
def test_a_sample_without_a_number_is_named(sample):
    with pytest.raises(WrongArgument, match=r"sample 0 is a .*, and no pair .*\. Let the data set"):
        labels_of([sample])


@pytest.mark.parametrize("label", [np.int32(1), np.array([1], np.uint8), torch.tensor([1.0]), True])
def test_a_label_of_any_kind_goes_to_the_loss_as_a_number(label):
    for part in (
        Transformed([(torch.zeros(1), label)], abs),
        Relabelled([(torch.zeros(1), label)], [0, 1]),
    ):
        found = part[0][1]
        assert (type(found), found) == (int, 1)
        assert labels_of(part) == [1]


@pytest.mark.parametrize("label", [-1, -100, 2])
def test_a_label_of_no_class_is_named(label):
    check_labels([(0, 1), (0, 0)], 2)
    told = rf"sample 1 has the label {label}, and there are 2 classes\. Labels .* 0 to 1"
    with pytest.raises(WrongArgument, match=told):
        check_labels([(0, 1), (0, label)], 2)


def test_a_list_of_samples_has_labels():
    assert labels_of([(0, 1), (0, torch.tensor(2))]) == [1, 2]
