"""All that a training needs, made from its settings: data, network, optimizer, loaders, loss."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from torchkeep.checkpointing.preemption import SignalWatch
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.errors import WrongArgument
from torchkeep.networks import image_size_of
from torchkeep.training.classifier import Card
from torchkeep.training.data import Data, Mixed, Preprocessing, labels_of, open_data, transform_of
from torchkeep.training.data.preprocessing import for_channels, for_size
from torchkeep.training.data.samples import Samples, files_of, length_of
from torchkeep.training.data.shares import SharedBatches, SharedSamples, num_batches
from torchkeep.training.data.transforms import refuse_picture
from torchkeep.training.diagnosis.trial import trial
from torchkeep.training.distributed.processes import check_sharing, ranks_here
from torchkeep.training.fitting import check_fit, image_of
from torchkeep.training.loop import Loss
from torchkeep.training.machine import chosen_device, memory_format, set_up
from torchkeep.training.optimizing import WEIGHT_DECAY, factor, make_optimizer
from torchkeep.training.quantizing import fake_quantize, observe_ranges
from torchkeep.training.records.tensorboard import require_tensorboard
from torchkeep.training.settings import Settings
from torchkeep.training.starting import Start, start
from torchkeep.training.surgery import (
    Schedule,
    check_schedule,
    freeze,
    freeze_all_but_head,
    freeze_stages,
    parameter_groups,
)
from torchkeep.wording import printable


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a training needs."""

    settings: Settings
    """How to train."""
    data: Data
    """What on, with its transforms."""
    start: Start
    """What from."""
    card: Card
    """What it will be."""
    optimizer: Optimizer
    """Of what is trained at first."""
    device: torch.device
    """Where to compute."""


_MOST_OBSERVED, _MOST_AT_ONCE = 128, 32
"""Of so many images the ranges in 8 bits are first taken."""


def prepare(source: str | os.PathLike[str], settings: Settings) -> Prepared:
    """Open the data, make the network, freeze what is not trained, and make the optimizer.

    Raises:
        TorchkeepError: something is missing or of no use; the message says what.
        MissingExtra: a log for TensorBoard is wanted, which is not installed.
    """
    num_ranks = Ranks.here().size
    check_sharing(settings, num_ranks)
    if settings.tensorboard:
        require_tensorboard()
    set_up(settings)
    if settings.download and num_ranks > 1:
        ranks_here().first(lambda: _opened(source, settings))  # else each would fetch it
    data = _opened(source, settings)
    begun = start(settings.arch, settings.weights, data.classes, settings.channels)
    size = settings.size or image_size_of(begun.arch)
    recipe = _recipe(begun.preprocessing, size, settings.channels)
    _check_channels(data, recipe, is_given=settings.channels is not None)
    device = chosen_device(settings.device)
    model = begun.model.to(device).to(memory_format=memory_format(settings))
    freeze_as_said(model, settings.freeze)
    check_fit(
        model,
        begun.arch,
        image_of(data.train, recipe),
        len(data.classes),
        batch_size=settings.batch_size // num_ranks,
        precision=settings.precision,
    )
    check_schedule(model, schedule_of(settings))
    factor(settings.schedule, 0, 1)  # refuses one that there is not
    if settings.qat:
        plain = data.transformed(transform_of(recipe), transform_of(recipe))
        with trial(()):  # a data set may draw random numbers
            fake_quantize(model, observe_ranges(model, _some(plain.train, settings, device)))
    return Prepared(
        settings,
        data.transformed(transform_of(recipe, settings.augment), transform_of(recipe)),
        begun,
        Card(begun.arch, data.classes, recipe, begun.structure, begun.input_channels),
        make_optimizer(settings.optimizer, parameter_groups(model, **rates_of(settings))),
        device,
    )


def _opened(source: str | os.PathLike[str], settings: Settings) -> Data:
    data = open_data(
        source,
        val_share=settings.val_share,
        seed=settings.seed,
        skip_broken=settings.skip_broken,
        download=settings.download,
    )
    if len(data.classes) < 2:
        raise WrongArgument(
            f"{data.source} has images of one class alone, {printable(data.classes[0])}: there is "
            "nothing to tell apart",
            advice="Put the images of each class into a folder of its own.",
        )
    return data


def freeze_as_said(model: nn.Module, what: str) -> None:
    """Freeze what `Settings.freeze` says.

    Raises:
        WrongArgument: it says something that the model has not.
    """
    if what == "all-but-head":
        freeze_all_but_head(model)
    elif what.isdecimal():
        freeze_stages(model, int(what))
    elif what.startswith("all-but:"):
        freeze(model, except_=what.removeprefix("all-but:").split(","))
    elif what != "none":
        raise WrongArgument(
            f"nothing is frozen by {what!r}",
            advice="Say none, all-but-head, a number of stages, or all-but:NAME,NAME.",
        )


def schedule_of(settings: Settings) -> Schedule:
    """Return what is unfrozen when."""
    return {epoch: _stage(what) for epoch, what in settings.unfreeze.items()}


def _stage(what: str) -> int | list[str]:
    if what.isdecimal():
        return int(what)
    return ["*"] if what == "all" else what.split(",")


def rates_of(settings: Settings) -> dict[str, Any]:
    """Return what `parameter_groups` makes groups by: learning rate, its decay, weight decay."""
    weight_decay = settings.weight_decay
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY.get(settings.optimizer, 0.0)
    return {"lr": settings.lr, "decay": settings.lr_decay, "weight_decay": weight_decay}


def _recipe(recipe: Preprocessing | None, size: int | None, channels: int | None) -> Preprocessing:
    if recipe is None:
        recipe = for_size(size or 224)
    elif size is not None:
        resize = None if recipe.resize is None else round(recipe.resize * size / recipe.height)
        recipe = replace(recipe, height=size, width=size, resize=resize)
    return recipe if channels is None else for_channels(recipe, channels)


def _some(samples: Samples, settings: Settings, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield a few batches of images from all over the samples."""
    count = length_of(samples)
    places = range(0, count, max(count // _MOST_OBSERVED, 1))[:_MOST_OBSERVED]
    size = min(settings.batch_size, _MOST_AT_ONCE)
    for at in range(0, len(places), size):
        images = torch.stack([samples[place][0] for place in places[at : at + size]])
        yield images.to(device, memory_format=memory_format(settings))


def _check_channels(data: Data, recipe: Preprocessing, *, is_given: bool) -> None:
    """Refuse pictures where tensors are needed, and tensors of other channels than were given.

    Raises:
        WrongArgument: they are pictures, or tensors of other channels than they should have.
    """
    is_picture = recipe.num_channels in (1, 3)
    if is_picture and not is_given:
        return
    with trial(()):  # a data set may draw random numbers
        sample = None if files_of(data.train) else data.train[0][0]
    if not isinstance(sample, torch.Tensor):
        if not is_picture:
            refuse_picture(recipe.num_channels)
    elif sample.ndim != 3 or len(sample) != recipe.num_channels:
        raise WrongArgument(
            f"{data.source} gives tensors of the shape {list(sample.shape)}, and the network takes "
            f"[{recipe.num_channels}, height, width]",
            advice="Give the number of its channels with --channels.",
        )


def loaders(prepared: Prepared) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of the training data and of the validation data.

    Where several processes train together, they are those of what this one has of each: see
    `torchkeep.training.data.shares`.
    """
    settings, data = prepared.settings, prepared.data
    mixed = None if settings.mix == "none" else Mixed(settings.mix, len(data.classes))
    num_samples = length_of(data.train)
    options: dict[str, Any] = {
        "num_workers": settings.workers,
        "pin_memory": prepared.device.type == "cuda",
        "persistent_workers": settings.workers > 0,
        "worker_init_fn": _leave_signals,
    }
    ranks = Ranks.here()
    if not ranks.is_alone:
        return _shared_loaders(prepared, ranks, {"collate_fn": mixed, **options}, options)
    train: DataLoader[Any] = DataLoader(
        data.train,
        settings.batch_size,
        shuffle=True,
        collate_fn=mixed,
        drop_last=num_batches(num_samples, settings.batch_size) * settings.batch_size < num_samples,
        **options,
    )
    # An iterator draws a seed for its workers, once per process if they persist. Out of a generator
    # of its own, so that the training's are the same with any number of workers and processes.
    own = torch.Generator().manual_seed(settings.seed)
    return train, DataLoader(data.val, 2 * settings.batch_size, generator=own, **options)


def _shared_loaders(
    prepared: Prepared, ranks: Ranks, options: dict[str, Any], val_options: dict[str, Any]
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    settings, data = prepared.settings, prepared.data
    # All ranks have drawn alike until now, and so they go on here, whatever else they draw.
    common = torch.Generator()
    common.set_state(torch.get_rng_state())
    own = torch.Generator().manual_seed(settings.seed)
    place = ranks.rank, ranks.size
    batches = SharedBatches(length_of(data.train), settings.batch_size, *place, common)
    train: DataLoader[Any] = DataLoader(
        data.train, batch_sampler=batches, generator=common, **options
    )
    val: DataLoader[Any] = DataLoader(
        data.val,
        2 * settings.batch_size // ranks.size,
        sampler=SharedSamples(length_of(data.val), *place),
        generator=own,
        **val_options,
    )
    return train, val


def _leave_signals(worker: int) -> None:
    del worker
    SignalWatch.leave_to_parent()


def class_weights_of(prepared: Prepared) -> torch.Tensor | None:
    """Return what a sample of each class counts in the loss, `[classes]`; None if all are alike."""
    if not prepared.settings.class_weights:
        return None
    labels = torch.tensor(labels_of(prepared.data.train))
    counts = labels.bincount(minlength=len(prepared.data.classes)).clamp(min=1)
    return (len(labels) / (len(counts) * counts)).float().to(prepared.device)


def loss_of(prepared: Prepared) -> Loss:
    """Return the loss that is minimised."""
    return partial(
        functional.cross_entropy,
        weight=class_weights_of(prepared),
        label_smoothing=prepared.settings.label_smoothing,
    )
