"""How a network is retrained: plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torchkeep.errors import WrongArgument
from torchkeep.training.data.preprocessing import MOST_CHANNELS

PRECISIONS = ("float32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run.

    Raises:
        WrongArgument: one of them is out of range.
    """

    arch: str | None = None
    """The network's name; None for the one that the weights tell."""
    weights: str = "default"
    """`default`, `none`, or a file: see `torchkeep.training.start`."""
    epochs: int = 10
    """How often the training data is gone through."""
    batch_size: int = 32
    """Samples in a batch, of all processes together."""
    optimizer: str = "adamw"
    """One of `torchkeep.training.optimizing.OPTIMIZERS`."""
    lr: float = 1e-3
    """The highest learning rate, of the head. Of 3e-3, 1e-3, 3e-4 and 1e-4 the default was the best
    for a pretrained ResNet18 with fifty images of digits, and less for early stages was no better.
    Pretrained transformers want less: 1e-4 with an `lr_decay` of 0.65 to 0.9 is usual."""
    lr_decay: float = 1.0
    """What the rate is multiplied by for each stage of the network further from the head."""
    weight_decay: float | None = None
    """Of weights alone: not of biases and norms. None for what is usual with the optimizer."""
    schedule: str = "cosine"
    """How the rate falls: one of `torchkeep.training.optimizing.SCHEDULES`."""
    warmup_epochs: float = 0.0
    """For how long it rises first."""
    freeze: str = "none"
    """What is not trained at first: `none`, `all-but-head`, a number for so many stages from the
    input on, or `all-but:layer4,fc` for all but what these names or patterns say."""
    unfreeze: Mapping[int, str] = field(default_factory=dict)
    """What is trained too from the beginning of an epoch (from 0) on: `all`, a number for so many
    stages from the output back, or names and patterns with commas between them."""
    augment: str = "light"
    """What is done to the images at random: see `torchkeep.training.data.transforms.POLICIES`."""
    mix: str = "none"
    """How the samples of a batch are mixed: `none`, `mixup` or `cutmix`."""
    size: int | None = None
    """Height and width of what the network sees, in pixels; None for what the weights expect."""
    channels: int | None = None
    """Channels of what the network sees: 1 for grey, 3 for colours, any number where the data are
    tensors; None for what the weights expect."""
    label_smoothing: float = 0.0
    """How much of the label is spread over all classes, from 0 to 1."""
    class_weights: bool = False
    """Whether rare classes count more, so that all count alike."""
    precision: str = "float32"
    """What is computed in: one of `PRECISIONS`."""
    accumulate: int = 1
    """How many batches make one step."""
    clip_norm: float | None = None
    """The largest norm of the gradient."""
    ema: float | None = None
    """The decay of a moving average of the weights, such as 0.999; it is what is evaluated."""
    patience: int | None = None
    """After how many epochs without a better result to stop."""
    val_share: float = 0.2
    """How much is kept for validation, where the data does not say it."""
    qat: bool = False
    """Whether it is trained to compute in 8 bits: see `torchkeep.training.quantizing`."""
    seed: int = 0
    """What every random number follows from."""
    workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """Where to compute: `auto`, `cpu`, `cuda`, `mps`, `cuda:1`."""
    threads: int | None = None
    """Threads that compute on the CPU; None for as many as PyTorch takes. Sums depend on it."""
    deterministic: bool = False
    """Whether only operations are used that give the same bits each time."""
    channels_last: bool = False
    """Whether images are laid out in memory pixel by pixel, which some devices are faster with."""
    compile: bool = False
    """Whether torch.compile makes the network faster, after a minute."""
    shard: bool = False
    """Whether processes that train together have a piece of the network each, and not all of it."""
    allow_inexact: bool = False
    """Whether to go on where that can't be exact: on another machine, say."""
    every_steps: int | None = None
    """Save after every so many steps as well, and not only after each epoch."""
    download: bool = False
    """Whether data sets may be fetched."""
    check: bool = True
    """Whether to look for what usually goes wrong, before and while it runs."""
    tensorboard: bool = False
    """Whether to write a log for TensorBoard into the run's folder."""
    skip_broken: bool = False
    """Whether images that can't be read are left out."""

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise WrongArgument(f"{name} is {value}, and has to be at least {least}")
        for name in ("lr", "val_share", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise WrongArgument(f"{name} is {value}, and has to be above 0")
        for name, most in _AT_MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise WrongArgument(f"{name} is {value}, and has to be at most {most}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise WrongArgument(f"ema is {self.ema}, and has to be from 0 to 1, such as 0.999")
        if not 0 <= self.label_smoothing < 1:
            raise WrongArgument(
                f"label_smoothing is {self.label_smoothing}, and has to be from 0 to 1"
            )
        if self.precision not in PRECISIONS:
            raise WrongArgument(
                f"there is no precision {self.precision!r}",
                advice=f"Choose one of {', '.join(PRECISIONS)}.",
            )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return asdict(self) | {"unfreeze": {str(k): v for k, v in self.unfreeze.items()}}


_AT_LEAST: dict[str, float] = {
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "workers": 0,
    "threads": 1,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "lr_decay": 0,
    "patience": 1,
    "size": 8,
    "channels": 1,
    "every_steps": 1,
    "seed": -(1 << 63),
}

_AT_MOST = {"channels": MOST_CHANNELS, "threads": 1 << 12, "seed": (1 << 64) - 1}
"""PyTorch fails at larger ones."""
