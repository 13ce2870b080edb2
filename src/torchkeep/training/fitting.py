"""Whether a network takes the images that it will be shown, and gives one output per class."""

from __future__ import annotations

import copy

import torch
from torch import nn

from torchkeep.errors import TorchkeepError, WrongArgument
from torchkeep.modes import evaluating, training
from torchkeep.training.data.preprocessing import Preprocessing
from torchkeep.training.data.samples import Samples
from torchkeep.training.diagnosis.trial import device_of, trial
from torchkeep.training.loop import computing_in
from torchkeep.training.machine import is_out_of_memory
from torchkeep.training.pretrained import usual_preprocessing
from torchkeep.wording import counted, printable, shortened


def check_fit(
    model: nn.Module,
    arch: str,
    image: torch.Tensor,
    num_classes: int,
    *,
    batch_size: int = 2,
    precision: str = "float32",
) -> None:
    """Make sure that a network takes images of this size, in evaluation and in training.

    A copy sees one or two images of zeros in either mode; the model and all random generators stay
    as they are. What can't be copied is not tried, and too little memory is not told here.

    Args:
        model: the network, where it will be trained.
        arch: its name.
        image: one that is like those that it will see, `[channels, height, width]`.
        num_classes: how many outputs it has to give.
        batch_size: how many images it will be trained on at once.
        precision: see `train_epoch`.

    Raises:
        WrongArgument: it does not, or returns something else.
    """
    shape = (min(batch_size, 2), *image.shape)
    images = torch.zeros(shape, dtype=image.dtype, device=device_of(model))
    with trial(()):
        try:
            copied = copy.deepcopy(model)
        except (TypeError, RuntimeError, AttributeError, MemoryError):
            return
        for name, mode in (("evaluation", evaluating), ("training", training)):
            try:
                with mode(copied), torch.no_grad(), computing_in(precision, images.device):
                    outputs = copied(images)
            except Exception as error:  # it is anybody's code
                if is_out_of_memory(error):
                    return
                raise _unfit(arch, images, name, error) from error
            _check_outputs(arch, outputs, (len(images), num_classes), name)


def image_of(samples: Samples, recipe: Preprocessing) -> torch.Tensor:
    """Return zeros like an image that comes to the network, `[channels, height, width]`.

    That is as the recipe makes it of a picture, or, if the samples are tensors, as they are.
    """
    with trial(()):
        try:
            picture, _ = samples[0]
        except TorchkeepError:  # is told when it is needed
            picture = None
    if isinstance(picture, torch.Tensor):
        return torch.zeros_like(picture)
    return torch.zeros(recipe.num_channels, recipe.height, recipe.width)


def _unfit(arch: str, images: torch.Tensor, mode: str, error: Exception) -> WrongArgument:
    size = " x ".join(map(str, reversed(images.shape[2:])))
    said = next(iter(str(error).splitlines()), "")
    return WrongArgument(
        f"{printable(arch)} can't take {counted(len(images), 'image')} of {size} pixels in {mode} "
        f"({type(error).__name__}: {shortened(said, 200)})",
        advice=_advice(arch, images),
    )


_OTHERS = "Networks for detection, segmentation or video can't be trained here."


def _advice(arch: str, images: torch.Tensor) -> str:
    usual = usual_preprocessing(arch)
    if (channels := images.shape[1]) != 3:
        return f"Images of {counted(channels, 'channel')} need --channels {channels}."
    if len(images) == 1:
        return "Give a larger --batch-size, or a larger --size."
    if usual is not None and (usual.height, usual.width) != tuple(images.shape[2:]):
        return f"It is made for {usual.width} x {usual.height}: --size {usual.height}."
    return _OTHERS if usual is not None else f"Choose another --size, or --arch. {_OTHERS}"


def _check_outputs(arch: str, outputs: object, shape: tuple[int, int], mode: str) -> None:
    parts: tuple[object, ...] = (outputs,)
    if isinstance(outputs, tuple) and mode == "training" and outputs[:1] != (None,):
        # `train_epoch` takes auxiliary outputs as well, and None for those that are switched off.
        parts = tuple(item for item in outputs if item is not None)
    for item in parts or (outputs,):
        found = f"a value of type {type(item).__name__}"
        if isinstance(item, torch.Tensor):
            found = str(list(item.shape))
        if found != str(list(shape)):
            raise WrongArgument(
                f"{printable(arch)} gives {found} in {mode} for {counted(shape[0], 'image')}, and "
                f"not {list(shape)}: a number per class",
                advice=f"Choose a network that classifies images. {_OTHERS}",
            )
