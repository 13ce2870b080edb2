"""The checks of `torchkeep.training.diagnosis` on a training that has been prepared."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torchkeep.training.data import labels_of
from torchkeep.training.data.samples import check_labels, files_of, length_of
from torchkeep.training.diagnosis import (
    Finding,
    RateCurve,
    examine_batch,
    examine_labels,
    examine_samples,
    examine_start,
    find_learning_rate,
    judge_learning_rate,
    overfit_one_batch,
    worst_first,
)
from torchkeep.training.diagnosis.trial import trial
from torchkeep.training.loop import total_loss
from torchkeep.training.machine import computing_as_said, is_slow
from torchkeep.training.preparing import Prepared, loaders, loss_of
from torchkeep.training.quantizing import layers_in_float
from torchkeep.wording import printable

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
    found = [*_of_machine(prepared), *_of_bits(prepared)]
    found += _of_data(prepared, is_thorough=is_thorough)
    if any(item.check in ("broken-images", "labels-range") for item in found):
        return found  # no batch can be made
    notify("a batch")
    with trial(()):
        inputs, labels = _batch(prepared)
    found += _of_inputs(prepared, inputs)
    begins = examine_start(
        prepared.start.model.train(),
        prepared.optimizer,
        inputs,
        labels,
        prepared.card.classes,
        fresh_head=prepared.start.has_new_head,
        loss_fn=total_loss,
        takes_tuples=True,
    )
    found += begins
    if is_thorough and not any(item.severity == "error" for item in begins):
        found += _of_learning(prepared, inputs, labels, notify)
    return worst_first(found)


def _of_machine(prepared: Prepared) -> list[Finding]:
    precision = prepared.settings.precision
    if not is_slow(precision, prepared.device):
        return []
    text = f"this processor has no instructions for {precision}, and takes many times as long"
    return [Finding("slow-precision", "warning", text, "Leave --precision out.")]


def _of_bits(prepared: Prepared) -> list[Finding]:
    kinds = layers_in_float(prepared.start.model) if prepared.settings.qat else {}
    if not kinds:
        return []
    named = ", ".join(f"{number:,} {printable(kind)}" for kind, number in kinds.items())
    text = f"with --qat the weights of {named} stay in float"
    advice = "8 bits are for convolutions and linear layers that are called in evaluation."
    return [Finding("qat-float", "note", text, advice)]


def _of_data(prepared: Prepared, *, is_thorough: bool) -> list[Finding]:
    data, recipe = prepared.data, prepared.card.preprocessing
    train, val = files_of(data.train), files_of(data.val)
    if train and (is_thorough or len(train) + len(val) <= _MAX_FILES):
        size = min(recipe.height, recipe.width)
        return examine_samples(train, data.classes, validation=val, input_size=size)
    labels, others = labels_of(data.train), labels_of(data.val)
    return examine_labels(labels, data.classes, validation=others)


def _of_inputs(prepared: Prepared, inputs: torch.Tensor) -> list[Finding]:
    recipe = prepared.card.preprocessing
    found = examine_batch(inputs, prepared.start.model, mean=recipe.mean, std=recipe.std)
    if prepared.start.preprocessing is None or recipe.num_channels not in (1, 3):
        # No weights that expect anything, or channels that these never saw.
        return [item for item in found if item.check != "not-normalised"]
    return found


def _of_learning(
    prepared: Prepared,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    notify: Callable[[str], object],
) -> list[Finding]:
    """Return whether copies of the network learn a batch by heart, and at which rates."""
    model = prepared.start.model
    notify("one batch")
    found = list(overfit_one_batch(model, inputs[:8], labels[:8], loss_fn=total_loss).findings)
    notify("learning rates")
    batches = [(inputs, labels)]
    curve = find_learning_rate(model, prepared.optimizer, batches, loss_fn=total_loss)
    return [*found, *judge_learning_rate(curve, prepared.settings.lr)]


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
        WrongArgument: a label is that of no class.
    """
    check_labels(prepared.data.train, len(prepared.card.classes))
    with computing_as_said(prepared.settings, prepared.device):
        return find_learning_rate(
            prepared.start.model,
            prepared.optimizer,
            loaders(prepared)[0],
            loss_fn=loss_of(prepared),
            progress=progress,
        )
