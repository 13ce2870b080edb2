"""What is wrong with labels and data sets: figures are counts of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torchkeep.checkpointing.state.rng import undisturbed
from torchkeep.files import digest
from torchkeep.tensors import bytes_of, plain_on_cpu
from torchkeep.training.diagnosis.findings import Finding, listed
from torchkeep.wording import counted, shortened

IGNORED = -100
"""The label that `torch.nn.functional.cross_entropy` leaves out."""

_UNEVEN = 10
"""So many times as many images as another class has are very uneven."""


# --- Labels ------------------------------------------------------------------------------------


def labels_out_of_range(labels: Iterable[int], num_classes: int) -> list[Finding]:
    """Return an error if labels are outside of `0..num_classes - 1`; -100 is left out."""
    used = [label for label in labels if label != IGNORED]
    wrong = [label for label in used if not 0 <= label < num_classes]
    if not wrong:
        return []
    text = (
        f"{len(wrong):,} of {counted(len(used), 'label')} are outside of 0..{num_classes - 1}: "
        f"the labels go from {min(used)} to {max(used)}"
    )
    starts_at_one = min(used) == 1 and max(used) == num_classes
    advice = (
        "Labels begin with 0: subtract 1."
        if starts_at_one
        else "Give the network as many outputs as there are classes, or map the labels by name."
    )
    return [Finding("labels-range", "error", text, advice)]


def constant_labels(labels: Iterable[int], num_classes: int) -> list[Finding]:
    """Return an error if all labels are one, of several classes."""
    counts = Counter(labels)
    if len(counts) != 1 or num_classes < 2:
        return []
    (label, number), *_ = counts.items()
    if number < 2:
        return []
    text = f"all {number:,} labels are {label}, of {num_classes} classes"
    advice = "Look at how labels are made; a sorted list must be shuffled before it is split."
    return [Finding("constant-labels", "error", text, advice)]


def empty_classes(labels: Iterable[int], classes: Sequence[str]) -> list[Finding]:
    """Return a warning if classes have no images."""
    there = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in there]
    if not empty:
        return []
    text = f"{len(empty)} of {counted(len(classes), 'class')} have no images: {listed(empty)}"
    advice = "Add images, or leave these classes out: what is never seen is never predicted."
    return [Finding("empty-classes", "warning", text, advice)]


def classes_apart(
    train: Iterable[int], validation: Iterable[int], classes: Sequence[str]
) -> list[Finding]:
    """Return what classes are only in the training data (warning), or only in validation (error).

    Args:
        train: labels for training.
        validation: labels for validation.
        classes: the class names by label.
    """
    trained, validated = set(train), set(validation)
    found = []
    if missing := _names(trained - validated, classes):
        text = (
            f"{len(missing)} of {counted(len(trained), 'class')} have no image in validation: "
            f"{listed(missing)}"
        )
        advice = "Split each class by itself (stratified): errors in these stay unseen."
        found.append(Finding("validation-classes", "warning", text, advice))
    if unseen := _names(validated - trained, classes):
        text = (
            f"{counted(len(unseen), 'class')} of the validation data have no image to train on: "
            f"{listed(unseen)}"
        )
        advice = "Split each class by itself, and use one list of class names for both."
        found.append(Finding("validation-classes", "error", text, advice))
    return found


def _names(labels: Iterable[int], classes: Sequence[str]) -> list[str]:
    return [classes[label] if 0 <= label < len(classes) else str(label) for label in sorted(labels)]


def uneven_classes(labels: Iterable[int], classes: Sequence[str]) -> list[Finding]:
    """Return a warning if one class has ten times as many images as another, or more."""
    counts = Counter(label for label in labels if 0 <= label < len(classes))
    if len(counts) < 2:
        return []
    ranked = counts.most_common()
    (most, high), (least, low) = ranked[0], ranked[-1]
    if high < _UNEVEN * low:
        return []
    text = (
        f"the class {shortened(classes[most])} has {counted(high, 'image')} and "
        f"{shortened(classes[least])} {low:,}: who always answers the former is right "
        f"in {high / sum(counts.values()):.0%}"
    )
    advice = (
        "Look at the accuracy of each class; give the loss class weights, or draw with a "
        "WeightedRandomSampler."
    )
    return [Finding("uneven-classes", "warning", text, advice)]


# --- Data sets ---------------------------------------------------------------------------------


def spread(length: int, most: int = 64) -> list[int]:
    """Return at most `most` indices, evenly spread over a data set of this length."""
    number = min(length, most)
    return [index * length // number for index in range(number)]


def dataset_items(
    dataset: Any, num_classes: int, *, indices: Sequence[int] | None = None
) -> list[Finding]:
    """Return what is wrong with items of a data set, which should be `(tensor, label)`.

    Random generators are left as they were.

    Args:
        dataset: gives an item for an index.
        num_classes: labels are `0..num_classes - 1`.
        indices: which items; by default 64, evenly spread.
    """
    chosen = spread(len(dataset)) if indices is None else indices
    if not chosen:
        return [Finding("dataset-item", "error", "the data set is empty", "Check its folder.")]
    items, broken = _items(dataset, chosen)
    if broken:
        return [broken]
    labels = [int(label) for _, label in items]
    return [
        *_shapes([item for item, _ in items], chosen),
        *labels_out_of_range(labels, num_classes),
        *constant_labels(labels, num_classes),
    ]


def _items(dataset: Any, indices: Sequence[int]) -> tuple[list[Any], Finding | None]:
    """Return the items, or what is wrong with the first one that is none."""
    items = []
    with undisturbed():
        for index in indices:
            try:
                item = dataset[index]
            except Exception as error:  # whatever a data set raises ends the training as well
                text = f"item {index} can't be read: {type(error).__name__}: {error}"
                advice = "Leave broken files out, or repair them."
                return [], Finding("dataset-item", "error", shortened(text, 300), advice)
            problem = _problem_of(item)
            if problem:
                advice = "Items are a float tensor and the label, a whole number."
                return [], Finding("dataset-item", "error", f"item {index} {problem}", advice)
            items.append(item)
    return items, None


def _problem_of(item: Any) -> str:
    if not isinstance(item, tuple | list) or len(item) != 2:
        return f"is a {type(item).__name__}, and no pair of an image and a label"
    image, label = item
    if not isinstance(image, torch.Tensor):
        return f"has an image of type {type(image).__name__}, and no tensor: a transform is missing"
    is_tensor = isinstance(label, torch.Tensor)
    if is_tensor and (label.numel() != 1 or label.is_floating_point()):
        return f"has a label of shape {list(label.shape)} and {label.dtype}, and no number"
    if not is_tensor and not hasattr(label, "__index__"):
        return f"has a label of type {type(label).__name__}, and no number"
    return ""


def _shapes(images: Sequence[torch.Tensor], indices: Sequence[int]) -> list[Finding]:
    """Return an error if images differ in shape, which no batch can be made of."""
    first = images[0]
    other = next((n for n, image in enumerate(images) if image.shape != first.shape), None)
    if other is None:
        return []
    text = (
        f"images differ in shape: item {indices[0]} has {list(first.shape)}, "
        f"item {indices[other]} {list(images[other].shape)}"
    )
    return [Finding("item-shapes", "error", text, "Resize and crop all to one size.")]


def shared_items(
    train: Any,
    validation: Any,
    *,
    train_indices: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
) -> list[Finding]:
    """Return an error if tensors of the validation data are, bit by bit, in the training data.

    Augmentation hides this: give it data sets without. For files see `duplicates`.

    Args:
        train: gives `(tensor, label)` for an index.
        validation: likewise.
        train_indices: which items of `train`; by default all.
        indices: which items of `validation`; by default all.
    """
    with undisturbed():
        known = {_digest(train[index][0]): index for index in train_indices or range(len(train))}
        chosen = range(len(validation)) if indices is None else indices
        pairs = [
            (index, known[found])
            for index in chosen
            if (found := _digest(validation[index][0])) in known
        ]
    if not pairs:
        return []
    text = (
        f"{len(pairs):,} of {counted(len(chosen), 'validation image')} are also trained on: "
        f"validation item {pairs[0][0]} is training item {pairs[0][1]}"
    )
    return [Finding("duplicates", "error", text, "Split once, by image, and before augmentation.")]


def _digest(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {digest(bytes_of(plain_on_cpu(tensor)))}"
