"""The checks of `torchkeep.training.diagnosis` on a training that has been prepared."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchkeep.training.data import labels_of
from torchkeep.training.data.samples import files_of, length_of
from torchkeep.training.diagnosis import (
    Finding,
    RateCurve,
    classes_apart,
    constant_labels,
    empty_classes,
    examine_batch,
    examine_samples,
    examine_start,
    find_learning_rate,
    judge_learning_rate,
    labels_out_of_range,
    overfit_one_batch,
    uneven_classes,
    worst_first,
)
from torchkeep.training.diagnosis.trial import trial
from torchkeep.training.loop import total_loss
from torchkeep.training.machine import computing_as_said
from torchkeep.training.preparing import Prepared, loaders, loss_of

_MAX_FILES = 5000
"""So many image files are read before a training; `torchkeep doctor` reads all."""

_NUM_SAMPLES = 32
"""How many samples a model is tried on."""


def check_up(
    prepared: Prepared,
    *,
    is_thorough: bool = False,
    notify: Callable[[str], object] = lambda _: None,
) -> list[Finding]:
    """Return what is wrong with data, model and optimizer before the first step, the worst first.

    Nothing is changed, no random generator either.

    Args:
        prepared: what is to be trained.
        is_thorough: read every image file, however many there are, train a copy of the model on one
            batch, and see which learning rates are of use.
        notify: is told what is looked at, before it takes its time.
    """
    notify("images")
    found = _of_data(prepared, is_thorough=is_thorough)
    if any(item.check == "broken-images" for item in found):
        return found  # no batch can be made
    model, optimizer = prepared.start.model, prepared.optimizer
    notify("a batch")
    with trial(()):
        inputs, labels = _batch(prepared)
    recipe = prepared.card.preprocessing
    entering = examine_batch(inputs, model, mean=recipe.mean, std=recipe.std)
    if prepared.start.preprocessing is None or recipe.num_channels not in (1, 3):
        # No weights that expect anything, or channels that these never saw.
        entering = [item for item in entering if item.check != "not-normalised"]
    found += entering
    begins = examine_start(
        model.train(),
        optimizer,
        inputs,
        labels,
        prepared.card.classes,
        fresh_head=prepared.start.has_new_head,
        loss_fn=total_loss,
        takes_tuples=True,
    )
    found += begins
    if is_thorough and not any(item.severity == "error" for item in begins):
        notify("one batch")
        found += overfit_one_batch(model, inputs[:8], labels[:8], loss_fn=total_loss).findings
        notify("learning rates")
        curve = find_learning_rate(model, optimizer, [(inputs, labels)], loss_fn=total_loss)
        found += judge_learning_rate(curve, prepared.settings.lr)
    return worst_first(found)


def _of_data(prepared: Prepared, *, is_thorough: bool) -> list[Finding]:
    data, recipe = prepared.data, prepared.card.preprocessing
    train, val = files_of(data.train), files_of(data.val)
    if train and (is_thorough or len(train) + len(val) <= _MAX_FILES):
        size = min(recipe.height, recipe.width)
        return examine_samples(train, data.classes, validation=val, input_size=size)
    labels, others = labels_of(data.train), labels_of(data.val)
    found = labels_out_of_range([*labels, *others], len(data.classes))
    found += constant_labels(labels, len(data.classes))
    found += empty_classes(labels, data.classes) + uneven_classes(labels, data.classes)
    return worst_first([*found, *classes_apart(labels, others, data.classes)])


def _batch(prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples from all over the training data."""
    samples = prepared.data.train
    count = length_of(samples)
    step = max(count // _NUM_SAMPLES, 1)
    pairs = [samples[at] for at in range(0, count, step)][:_NUM_SAMPLES]
    inputs = torch.stack([inputs for inputs, _ in pairs])
    labels = torch.tensor([int(label) for _, label in pairs])
    return inputs.to(prepared.device), labels.to(prepared.device)


def try_rates(
    prepared: Prepared, progress: Callable[[int, int], object] = lambda _done, _total: None
) -> RateCurve:
    """Return the losses of a training's first steps at growing rates; nothing is changed.

    Args:
        prepared: what `prepare` returned.
        progress: is called with the steps that were made, and with how many there are.

    Raises:
        OutOfMemory: a batch is too large for the device.
    """
    with computing_as_said(prepared.settings, prepared.device):
        return find_learning_rate(
            prepared.start.model,
            prepared.optimizer,
            loaders(prepared)[0],
            loss_fn=loss_of(prepared),
            progress=progress,
        )
