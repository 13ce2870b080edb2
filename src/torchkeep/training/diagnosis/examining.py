"""All checks of a kind in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from torchkeep.training.diagnosis.data import (
    classes_apart,
    constant_labels,
    empty_classes,
    labels_out_of_range,
    uneven_classes,
)
from torchkeep.training.diagnosis.findings import Finding, worst_first
from torchkeep.training.diagnosis.gradients import gradients
from torchkeep.training.diagnosis.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    constant_images,
    not_finite,
    not_normalised,
    wrong_device,
    wrong_dtype,
    wrong_shape,
)
from torchkeep.training.diagnosis.pictures import (
    Samples,
    broken_images,
    conflicting_labels,
    duplicates,
    look_at,
    tiny_images,
)
from torchkeep.training.diagnosis.start import (
    Classes,
    count_of,
    initial_loss,
    modes,
    optimizer_parameters,
    outputs,
    trainable_parameters,
)
from torchkeep.training.loop import Loss


def examine_labels(
    train: Sequence[int], classes: Sequence[str], *, validation: Sequence[int] = ()
) -> list[Finding]:
    """Return what is wrong with labels, the worst first.

    Args:
        train: the labels of what is trained on.
        classes: the class names by label.
        validation: those of what is not trained on.
    """
    found = labels_out_of_range([*train, *validation], len(classes))
    found += constant_labels(train, len(classes))
    found += empty_classes(train, classes)
    found += uneven_classes(train, classes)
    if validation:
        found += classes_apart(train, validation, classes)
    return worst_first(found)


def examine_samples(
    train: Samples,
    classes: Sequence[str],
    *,
    validation: Samples = (),
    input_size: int | None = None,
) -> list[Finding]:
    """Return what is wrong with image files and labels, the worst first. Each file is decoded.

    Args:
        train: the files with their labels.
        classes: the class names by label.
        validation: the files with labels that are not trained on.
        input_size: the height and width of the network's input in pixels.
    """
    labels, held_out = [label for _, label in train], [label for _, label in validation]
    found = examine_labels(labels, classes, validation=held_out)
    ours, others = look_at(train), look_at(validation)
    found += broken_images([*ours, *others])
    found += conflicting_labels([*ours, *others], classes)
    found += duplicates(ours, others)
    if input_size is not None:
        found += tiny_images(ours, input_size)
    return worst_first(found)


def examine_batch(
    inputs: torch.Tensor,
    model: nn.Module,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> list[Finding]:
    """Return what is wrong with a batch as it enters the network, the worst first.

    Args:
        inputs: `[n, channels, height, width]`.
        model: what it enters.
        mean: what the weights expect to be subtracted per channel, of values in 0..1; there are
            as many channels.
        std: what they expect to be divided by.
    """
    found = wrong_shape(inputs, channels=len(mean))
    found += wrong_dtype(inputs, model)
    found += wrong_device(inputs, model)
    found += not_finite(inputs)
    found += constant_images(inputs)
    return worst_first([*found, *not_normalised(inputs, mean=mean, std=std)])


def examine_start(
    model: nn.Module,
    optimizer: Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    classes: Classes,
    *,
    fresh_head: bool = True,
    loss_fn: Loss = functional.cross_entropy,
    takes_tuples: bool = False,
) -> list[Finding]:
    """Return what all checks of a start find, the worst first.

    What runs the loss is left out if labels or outputs don't fit each other.

    Args:
        model: as it is when training begins.
        optimizer: its optimizer.
        inputs: a batch `[n, ...]`.
        labels: `[n]`.
        classes: how many there are, their names, or a `class_to_idx`.
        fresh_head: the head has not been trained yet.
        loss_fn: what is trained with.
        takes_tuples: `loss_fn` takes a tuple as well, of the main outputs and auxiliary ones.
    """
    found = [*modes(model), *trainable_parameters(model), *optimizer_parameters(model, optimizer)]
    found += labels_out_of_range(labels.tolist(), count_of(classes))
    found += outputs(model, inputs, classes, takes_tuples=takes_tuples)
    stops = {"labels-range", "num-outputs", "outputs", "no-trainable"}
    if not any(item.severity == "error" and item.check in stops for item in found):
        if fresh_head:
            found += initial_loss(model, inputs, labels, count_of(classes), loss_fn=loss_fn)
        found += gradients(model, inputs, labels, loss_fn=loss_fn)
    return worst_first(found)
