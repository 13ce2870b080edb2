"""The switches that say how a network is trained, and the settings that they make."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torchkeep.training.settings import Settings


class _Switch(NamedTuple):
    name: str
    """That of the setting."""
    kind: type
    """Of its value; `bool` is a switch without one."""
    metavar: str
    """What stands for its value."""
    help: str
    """What it is, in a line."""


_GROUPS: dict[str, tuple[_Switch, ...]] = {
    "what to start from": (
        _Switch(
            "arch",
            str,
            "NAME",
            "the network: resnet18, torchvision/NAME, timm/NAME or module:callable; without "
            "it, the one that the file's weights tell",
        ),
        _Switch(
            "weights",
            str,
            "default|none|FILE",
            "the library's pretrained weights (default), none, or a file of any kind",
        ),
        _Switch(
            "freeze",
            str,
            "WHAT",
            "what is not trained at first (none): all-but-head, all-but:NAME,NAME, or a number of "
            "stages from the input on",
        ),
    ),
    "data": (
        _Switch(
            "size",
            int,
            "PIXELS",
            "height and width that the network sees; by default what the weights expect",
        ),
        _Switch(
            "channels",
            int,
            "N",
            "1 for grey images, 3 for colours, any number if the data are tensors",
        ),
        _Switch(
            "augment",
            str,
            "POLICY",
            "none, light (default; never mirrored), standard or randaugment",
        ),
        _Switch("mix", str, "HOW", "mix the samples of a batch: none (default), mixup or cutmix"),
        _Switch(
            "val_share",
            float,
            "SHARE",
            "how much is kept for validation, if the folder has no val/ (0.2)",
        ),
        _Switch("batch_size", int, "N", "samples in a batch, of all processes together (32)"),
        _Switch("workers", int, "N", "processes that load images, for each that trains (0)"),
        _Switch("skip_broken", bool, "", "leave out images that can't be read, and list them"),
        _Switch("download", bool, "", "let data sets be fetched"),
    ),
    "training": (
        _Switch("epochs", int, "N", "how often to go through the data (10)"),
        _Switch(
            "lr",
            float,
            "RATE",
            "the highest learning rate, which is the head's (0.001); for "
            "pretrained transformers 1e-4 is usual, with --lr-decay 0.8",
        ),
        _Switch(
            "lr_decay",
            float,
            "FACTOR",
            "multiply it by this for each stage further from the head (1)",
        ),
        _Switch("optimizer", str, "NAME", "adamw (default), adam, sgd, rmsprop or nadam"),
        _Switch("weight_decay", float, "RATE", "of weights alone, not of biases and norms"),
        _Switch("schedule", str, "NAME", "cosine (default), linear, steps or constant"),
        _Switch("warmup_epochs", float, "N", "for how long the rate rises first (0)"),
        _Switch(
            "label_smoothing", float, "SHARE", "how much of a label is spread over all classes (0)"
        ),
        _Switch("class_weights", bool, "", "have rare classes count more"),
        _Switch("accumulate", int, "N", "how many batches make one step (1)"),
        _Switch("clip_norm", float, "NORM", "the largest norm of the gradient"),
        _Switch(
            "ema", float, "DECAY", "evaluate and keep a moving average of the weights, as in 0.999"
        ),
        _Switch(
            "qat",
            bool,
            "",
            "train for 8 bits: round weights and inputs of layers as in int8; start from a trained "
            "FILE, at a tenth of its rate, for a few epochs",
        ),
        _Switch("patience", int, "N", "stop after so many epochs without a better result"),
        _Switch("seed", int, "N", "what every random number follows from (0)"),
    ),
    "machine": (
        _Switch("device", str, "NAME", "auto (default), cpu, cuda, cuda:1 or mps"),
        _Switch("threads", int, "N", "threads that compute on the CPU"),
        _Switch("precision", str, "NAME", "float32 (default), bf16 or fp16"),
        _Switch("channels_last", bool, "", "lay images out pixel by pixel: faster on some devices"),
        _Switch("compile", bool, "", "use torch.compile"),
        _Switch(
            "shard",
            bool,
            "",
            "with several processes: have a piece of the network in each (FSDP2), not all of it",
        ),
        _Switch("deterministic", bool, "", "use only operations that give the same bits each time"),
    ),
    "the run": (
        _Switch(
            "every_steps", int, "N", "save after every so many steps too, and not only each epoch"
        ),
        _Switch("tensorboard", bool, "", "write a log for TensorBoard into RUN/tensorboard"),
        _Switch("no_check", bool, "", "do not look for what usually goes wrong"),
        _Switch(
            "allow_inexact", bool, "", "go on even where that can't be exact, as on another machine"
        ),
    ),
}
"""The switches by what they are about."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give a verb a switch for each setting of a training."""
    for title, switches in _GROUPS.items():
        group = parser.add_argument_group(title)
        for switch in switches:
            _add(group, switch)
            if switch.name == "freeze":
                _add_unfreeze(group)


def _add(group: argparse._ArgumentGroup, switch: _Switch) -> None:
    flag = f"--{switch.name.replace('_', '-')}"
    if switch.kind is bool:
        group.add_argument(flag, action="store_true", help=switch.help)
        return
    # Unset ones are left to the settings' own defaults, so that these stand in one place.
    group.add_argument(
        flag,
        metavar=switch.metavar,
        type=switch.kind,
        default=argparse.SUPPRESS,
        help=switch.help,
    )


def _add_unfreeze(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--unfreeze",
        metavar="EPOCH:WHAT",
        type=_stage,
        action="append",
        default=[],
        help="train more from an epoch (from 0) on: all, a number of stages from the output back, "
        "or NAME,NAME",
    )


def _stage(text: str) -> tuple[int, str]:
    epoch, colon, what = text.partition(":")
    if not (colon and epoch.isdigit() and what):
        raise argparse.ArgumentTypeError(f"{text!r} is no stage: write EPOCH:WHAT, as in 3:layer4")
    return int(epoch), what


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that a verb was told.

    Raises:
        WrongArgument: one of them is out of range.
    """
    from torchkeep.training.settings import Settings

    given = vars(options)
    values = {item.name: given[item.name] for item in fields(Settings) if item.name in given}
    values |= {"unfreeze": dict(options.unfreeze), "check": not options.no_check}
    return Settings(**values)
