"""Samples as data sets give them, what is laid around them, and their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from torchkeep.checkpointing.state.rng import undisturbed
from torchkeep.errors import WrongArgument
from torchkeep.training.data.folders import ImageFolder
from torchkeep.wording import counted

Samples = Dataset[tuple[Any, int]]
"""Gives `(picture, label)`: a `PIL.Image`, or a tensor that is ready for the network."""


def length_of(samples: Samples) -> int:
    """Return how many samples there are, which PyTorch's type of a data set does not promise."""
    return len(samples)  # type: ignore[arg-type]


class Transformed(Dataset[tuple[Any, int]]):
    """Samples whose pictures have gone through a transform, and whose labels are plain numbers.

    Data sets give labels as arrays of one element as well, or as integers that a loss can't take.

    Attributes:
        samples: the ones before.
        transform: what is applied.
    """

    def __init__(self, samples: Samples, transform: Callable[[Any], Any]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return length_of(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample = self.samples[index]
        picture, label = sample[0], _label_of(sample, index)
        ready = isinstance(picture, torch.Tensor)
        return (picture if ready else self.transform(picture)), label


class Relabelled(Dataset[tuple[Any, int]]):
    """Samples with other labels.

    Attributes:
        samples: the ones before.
        mapping: what each label becomes.
    """

    def __init__(self, samples: Samples, mapping: Sequence[int]) -> None:
        self.samples = samples
        self.mapping = mapping

    def __len__(self) -> int:
        return length_of(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample = self.samples[index]
        return sample[0], self.mapping[_label_of(sample, index)]


class Labelled(Dataset[tuple[Any, int]]):
    """Samples whose labels are read once, when they are asked for first.

    Attributes:
        samples: the ones before.
        labels: their labels; None as long as nobody has asked.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.labels: list[int] | None = None

    def __len__(self) -> int:
        return length_of(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.samples[index]


def labelled(samples: Samples) -> Samples:
    """Return samples whose labels are read once at the most; the same ones if they are known."""
    is_ready = isinstance(samples, Labelled) or known_labels(samples) is not None
    return samples if is_ready else Labelled(samples)


def labels_of(samples: Any) -> list[int]:
    """Return the label of each sample: from the data set's own list if it has one, else by reading.

    Random generators are left as they were.

    Raises:
        WrongArgument: a sample has no label that is a number.
    """
    return _labels(samples, may_read=True) or []


def known_labels(samples: Any) -> list[int] | None:
    """Return the label of each sample without reading one; None if nothing tells."""
    return _labels(samples, may_read=False)


def _labels(samples: Any, *, may_read: bool) -> list[int] | None:
    if isinstance(samples, Transformed):
        return _labels(samples.samples, may_read=may_read)
    if isinstance(samples, Relabelled):
        before = _labels(samples.samples, may_read=may_read)
        return before and [samples.mapping[label] for label in before]
    if isinstance(samples, Labelled):
        if samples.labels is None:
            samples.labels = _labels(samples.samples, may_read=may_read)
        return samples.labels
    if isinstance(samples, Subset):
        # A part of what is not kept is read for itself, and not for all that it is a part of.
        is_kept = isinstance(samples.dataset, Labelled)
        labels = _labels(samples.dataset, may_read=may_read and is_kept)
        if labels is not None:
            return [labels[at] for at in samples.indices]
    found = _listed(samples)
    return _read(samples) if found is None and may_read else found


_LISTS = ("targets", "labels", "_labels", "_samples", "samples", "imgs", "y", "_targets")
"""What data sets, torchvision's among them, call their list of labels, or of files with labels."""


def _listed(samples: Any) -> list[int] | None:
    """Return a data set's own list, if it is plain and what the samples have."""
    if isinstance(samples, TensorDataset) and len(samples.tensors) == 2:
        return _whole(samples.tensors[1], len(samples))
    if getattr(samples, "target_transform", None) is not None or not hasattr(samples, "__len__"):
        return None
    own = getattr(samples, "__dict__", {})
    lists = (_whole(own[name], len(samples)) for name in _LISTS if name in own)
    return next((found for found in lists if found is not None), None)


def _whole(value: Any, count: int) -> list[int] | None:
    """Return a list of so many labels as whole numbers; None if it is anything else."""
    rows = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(rows, list | tuple) or len(rows) != count:
        return None
    if all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        if not all(isinstance(row[0], str | Path) for row in rows):
            return None
        rows = [row[1] for row in rows]
    return [int(row) for row in rows] if all(hasattr(row, "__index__") for row in rows) else None


def _read(samples: Any) -> list[int]:
    with undisturbed():
        return [_label_of(samples[at], at) for at in range(len(samples))]


def _label_of(sample: Any, at: int) -> int:
    try:
        label = sample[1].item() if hasattr(sample[1], "item") else sample[1]
        number = int(label)
        if number != label:
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError, KeyError):
        raise WrongArgument(
            f"sample {at} is a {type(sample).__name__}, and no pair of an image and a number",
            advice="Let the data set give (image, label), the label a whole number from 0 on.",
        ) from None
    return number


def check_labels(samples: Any, num_classes: int) -> None:
    """Make sure that the label of each sample is that of a class.

    Raises:
        WrongArgument: one is not.
    """
    for at, label in enumerate(labels_of(samples)):
        if not 0 <= label < num_classes:
            raise WrongArgument(
                f"sample {at} has the label {label}, and there are {counted(num_classes, 'class')}",
                advice=f"Labels are whole numbers from 0 to {num_classes - 1}.",
            )


def files_of(samples: Any) -> list[tuple[Path, int]]:
    """Return the image files of samples with their labels; none if they are no files."""
    if isinstance(samples, Transformed | Labelled):
        return files_of(samples.samples)
    if isinstance(samples, Relabelled):
        return [(path, samples.mapping[label]) for path, label in files_of(samples.samples)]
    if isinstance(samples, Subset):
        files = files_of(samples.dataset)
        return [files[at] for at in samples.indices] if files else []
    return list(samples.samples) if isinstance(samples, ImageFolder) else []
