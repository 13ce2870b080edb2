"""`torchkeep train`: from weights and a folder of images to a model that works."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import require_torch, table, write_lines
from torchkeep.cli.rates import write_curve
from torchkeep.cli.text import clip, wrapped
from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.wording import counted, printable

if TYPE_CHECKING:
    from torchkeep.training.preparing import Prepared
    from torchkeep.training.retraining import Event, Result
    from torchkeep.training.settings import Settings
    from torchkeep.training.surgery import LayerRow

DESCRIPTION = """\
Train a network on images, from pretrained weights, from a file of any kind, or
from scratch. The run is saved as it goes: start the same command again after a
crash, or `torchkeep resume RUN`, and it goes on where it was, bit for bit. The
best model is a file that `torchkeep predict` needs nothing besides."""

EPILOG = """\
examples:
  torchkeep train photos/ --arch resnet18                 pretrained, all of it
  torchkeep train photos/ --weights theirs.pth --freeze all-but-head
  torchkeep train photos/ --arch timm/convnext_tiny --lr 1e-4 --lr-decay 0.7
  torchkeep train photos/ --arch resnet50 --freeze all-but-head \\
      --unfreeze 3:layer4 --unfreeze 6:all                in stages
  torchkeep train digits --arch resnet18 --weights none --size 32
  torchkeep train photos/ --weights theirs.pth --show     look, do not train
  torchkeep train photos/ --arch resnet18 --find-lr       which learning rate?

DATA is a folder of images, a folder per class, perhaps in train/ and val/; a
data set of torchvision such as FashionMNIST (--download fetches it); `digits`,
which scikit-learn has; or module:function, which returns two data sets.

Ctrl-C saves and ends with exit code 75. The exit code is 0 if the training came
to its end, or that of a problem. `torchkeep --help` lists the codes."""

_GROUPS: dict[str, dict[str, str]] = {
    "what to start from": {
        "arch": "NAME",
        "weights": "default|none|FILE",
        "freeze": "WHAT",
    },
    "data": {
        "size": "PIXELS",
        "channels": "N",
        "augment": "POLICY",
        "mix": "HOW",
        "val_share": "SHARE",
        "batch_size": "N",
        "workers": "N",
        "skip_broken": "",
        "download": "",
    },
    "training": {
        "epochs": "N",
        "lr": "RATE",
        "lr_decay": "FACTOR",
        "optimizer": "NAME",
        "weight_decay": "RATE",
        "schedule": "NAME",
        "warmup_epochs": "N",
        "label_smoothing": "SHARE",
        "class_weights": "",
        "accumulate": "N",
        "clip_norm": "NORM",
        "ema": "DECAY",
        "patience": "N",
        "seed": "N",
    },
    "machine": {
        "device": "NAME",
        "threads": "N",
        "precision": "NAME",
        "channels_last": "",
        "compile": "",
        "deterministic": "",
    },
    "the run": {
        "every_steps": "N",
        "tensorboard": "",
        "no_check": "",
        "allow_inexact": "",
    },
}
"""The switches by what they are about: the settings' names, and what stands for their values."""

_HELP: dict[str, str] = {
    "arch": "the network: resnet18, torchvision/NAME, timm/NAME or module:callable; "
    "without it, the one that the file's weights tell",
    "weights": "the library's pretrained weights, none, or a file of any kind",
    "freeze": "what is not trained at first: none, a number of stages from the input on, "
    "all-but-head, or all-but:NAME,NAME",
    "size": "height and width that the network sees; by default what the weights expect",
    "channels": "1 for grey images, 3 for colours, any number if the data are tensors",
    "augment": "none, light (never mirrored), standard or randaugment",
    "mix": "mix the samples of a batch: none, mixup or cutmix",
    "val_share": "how much is kept for validation, if the folder has no val/",
    "batch_size": "samples in a batch",
    "workers": "processes that load images",
    "skip_broken": "leave out images that can't be read, and list them",
    "download": "let data sets be fetched",
    "epochs": "how often to go through the data",
    "lr": "the highest learning rate, which is the head's; 1e-3 by default, and for pretrained "
    "transformers 1e-4 is usual, with --lr-decay 0.8",
    "lr_decay": "multiply it by this for each stage further from the head",
    "optimizer": "adamw, adam, sgd, rmsprop or nadam",
    "weight_decay": "of weights alone, not of biases and norms",
    "schedule": "cosine, linear, steps or constant",
    "warmup_epochs": "for how long the rate rises first",
    "label_smoothing": "how much of a label is spread over all classes",
    "class_weights": "have rare classes count more",
    "accumulate": "how many batches make one step",
    "clip_norm": "the largest norm of the gradient",
    "ema": "evaluate and keep a moving average of the weights, as in 0.999",
    "patience": "stop after so many epochs without a better result",
    "seed": "what every random number follows from",
    "device": "auto, cpu, cuda, cuda:1 or mps",
    "threads": "threads that compute on the CPU",
    "precision": "float32, bf16 or fp16",
    "channels_last": "lay images out pixel by pixel: faster on some devices",
    "compile": "use torch.compile",
    "allow_inexact": "go on even where that can't be exact, as on another machine",
    "no_check": "do not look for what usually goes wrong",
    "tensorboard": "write a log for TensorBoard into RUN/tensorboard",
    "deterministic": "use only operations that give the same bits each time",
    "every_steps": "save after every so many steps too, and not only each epoch",
}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "train",
        help="train a network on images, from any weights",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="a folder of images, or a data set's name")
    parser.add_argument(
        "--out", metavar="RUN", type=Path, help="the run's folder; runs/DATA by default"
    )
    parser.add_argument(
        "--events", metavar="FILE", type=Path, help="append what happens, a line of JSON each"
    )
    parser.add_argument("--show", action="store_true", help="show what would be trained, and end")
    parser.add_argument(
        "--find-lr", action="store_true", help="show which learning rates are of use, and end"
    )
    for title, names in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, metavar in names.items():
            _add(group, name, metavar)
        if "freeze" in names:
            group.add_argument(
                "--unfreeze",
                metavar="EPOCH:WHAT",
                type=_stage,
                action="append",
                default=[],
                help="train more from an epoch (from 0) on: all, a number of stages from the "
                "output back, or NAME,NAME",
            )
    parser.set_defaults(run=run)


_KINDS = {
    int: {"size", "channels", "batch_size", "workers", "epochs", "accumulate", "patience", "seed"}
    | {"every_steps", "threads"},
    float: {"val_share", "lr", "lr_decay", "weight_decay", "warmup_epochs", "label_smoothing"}
    | {"clip_norm", "ema"},
}


def _add(group: argparse._ArgumentGroup, name: str, metavar: str) -> None:
    switch = f"--{name.replace('_', '-')}"
    if not metavar:
        group.add_argument(switch, action="store_true", help=_HELP[name])
        return
    kind = next((kind for kind, names in _KINDS.items() if name in names), str)
    # Unset ones are left to the settings' own defaults, so that these stand in one place.
    group.add_argument(
        switch, metavar=metavar, type=kind, default=argparse.SUPPRESS, help=_HELP[name]
    )


def _stage(text: str) -> tuple[int, str]:
    epoch, colon, what = text.partition(":")
    if not (colon and epoch.isdigit() and what):
        raise argparse.ArgumentTypeError(f"{text!r} is no stage: write EPOCH:WHAT, as in 3:layer4")
    return int(epoch), what


def run(options: argparse.Namespace) -> int:
    """Train, and say how good the result is; return 0."""
    require_torch("train")
    from torchkeep.training.checkup import try_rates
    from torchkeep.training.preparing import prepare
    from torchkeep.training.retraining import retrain

    settings = _settings(options)
    prepared = prepare(options.data, settings)
    _write_start(prepared)
    if options.show:
        _write_layers(prepared)
    if options.find_lr:
        try:
            curve = try_rates(prepared, _tell_how_far)
        finally:
            _tell_how_far(0, 0)
        write_curve(curve, settings.lr)
    if options.show or options.find_lr:
        return 0
    folder = options.out or Path("runs") / Path(options.data.replace(":", "-")).resolve().name
    _refuse_inside(folder, options.data)
    with Screen(settings) as screen, _written(options.events) as write:

        def tell(event: Event) -> None:
            screen.show(event)
            write(event)

        result = retrain(prepared, folder, notify=tell)
    _write_result(result)
    return 0


def _refuse_inside(folder: Path, data: str) -> None:
    """Refuse a run's folder among the data, where the next start would take it for a class."""
    if Path(data).is_dir() and folder.resolve().is_relative_to(Path(data).resolve()):
        raise WrongArgument(
            f"the run {printable(str(folder))} would lie in its own data",
            advice="Choose a folder elsewhere with --out.",
        )


@contextmanager
def _written(path: Path | None) -> Iterator[Callable[[Event], None]]:
    """Yield what appends an event to a file, whole and at once.

    Raises:
        SaveRefused: it can't be written.
    """
    if path is None:
        yield lambda _: None
        return
    with _refusing(path):
        file = path.open("ab", buffering=0)
    with file:

        def write(event: Event) -> None:
            row = {"event": event.kind, "step": event.step, "epoch": event.epoch}
            row |= {"batch": event.batch, **event.values}
            if event.finding is not None:
                row |= event.finding.to_json()
            with _refusing(path):
                file.write(f"{json.dumps(row)}\n".encode())

        yield write


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveRefused(
            f"{printable(str(path))}: the events can't be written there ({error.strerror})",
            advice="Choose another file with --events.",
        ) from None


def _settings(options: argparse.Namespace) -> Settings:
    from torchkeep.training.settings import Settings

    given = vars(options)
    values = {item.name: given[item.name] for item in fields(Settings) if item.name in given}
    values |= {"unfreeze": dict(options.unfreeze), "check": not options.no_check}
    return Settings(**values)


def _write_start(prepared: Prepared) -> None:
    from torchkeep.training.data.samples import length_of

    data, begun, card = prepared.data, prepared.start, prepared.card
    recipe = card.preprocessing
    parameters = list(begun.model.parameters())
    num_trained = sum(item.numel() for item in parameters if item.requires_grad)
    lines = [
        f"data      {data.source}: {counted(len(data.classes), 'class')}, "
        f"{length_of(data.train):,} images to train on, {length_of(data.val):,} to validate",
        f"network   {card.arch} from {begun.weights}"
        f"{', with a new head' if begun.has_new_head else ''}",
        f"trained   {num_trained:,} of {sum(item.numel() for item in parameters):,} parameters",
        f"images    {recipe.width} x {recipe.height}, "
        f"{_COLOURS.get(recipe.num_channels, f'{recipe.num_channels} channels, ')}"
        f"{prepared.settings.augment} augmentation",
        f"device    {prepared.device}",
    ]
    lines += [f"left out  {text}" for text in data.skipped]
    write_lines(map(printable, lines), indent=10)


def _tell_how_far(done: int, total: int) -> None:
    if sys.stderr.isatty():
        text = "" if done == total else f"trying learning rates: {done} of {total} steps"
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


_COLOURS = {1: "grey, ", 3: ""}


def _write_layers(prepared: Prepared) -> None:
    from torchkeep.training.surgery import layer_table

    rows: list[tuple[str, ...]] = [("layer", "kind", "parameters", "trained", "learning rate")]
    for row in layer_table(prepared.start.model, prepared.optimizer):
        rows.append(_cells(row))
    sys.stdout.writelines(f"{line}\n" for line in table(rows, right=(2,)))


def _cells(row: LayerRow) -> tuple[str, ...]:
    trained = f"{row.trainable}, statistics frozen" if row.stays_in_eval else row.trainable
    rates = ", ".join(f"{rate:g}" for rate in row.learning_rates)
    return row.name, row.kind, f"{row.num_parameters:,}", trained, rates


class Screen:
    """A bar on a terminal, and a line per epoch everywhere."""

    def __init__(self, settings: Settings) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._settings = settings
        self._console = Console(highlight=False)
        can_draw = self._console.is_terminal and not self._console.is_dumb_terminal
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[rate]}"),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not can_draw,
        )
        self._task: Any = None

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show what happened."""
        {
            "begun": self._begin,
            "step": self._advance,
            "epoch": self._end_epoch,
            "found": self._tell,
        }[event.kind](event)

    def _begin(self, event: Event) -> None:
        if event.step:
            self._console.print(f"goes on after step {event.step:,} of {event.num_steps:,}")
        self._task = self._progress.add_task(
            "", total=event.num_steps, completed=event.step, epoch="", rate="", loss=0.0
        )

    def _advance(self, event: Event) -> None:
        speed = self._progress.tasks[0].speed
        images = self._settings.batch_size * self._settings.accumulate
        rate = "" if speed is None else f"{speed * images:,.0f} images/s"
        self._progress.update(
            self._task,
            completed=event.step,
            loss=event.values["loss"],
            rate=rate,
            epoch=f"{event.epoch + 1}/{self._settings.epochs}",
        )

    def _tell(self, event: Event) -> None:
        if event.finding is not None:
            item = event.finding
            line = f"{item.severity:<9} {clip(item.text, 400)}. {printable(item.advice)}"
            self._console.print(
                wrapped(line.rstrip(), sys.stdout, indent=10), markup=False, soft_wrap=True
            )

    def _end_epoch(self, event: Event) -> None:
        row = event.values
        self._console.print(
            f"epoch {int(row['epoch']) + 1:>3} of {self._settings.epochs}   "
            f"loss {row['loss']:.4f}   val_loss {row['val_loss']:.4f}   "
            f"accuracy {row['val_accuracy']:.2%}"
        )


def _write_result(result: Result) -> None:
    row = result.history[result.best_epoch]
    early = "It stopped early, since nothing got better. " if result.stopped_early else ""
    write_lines(
        [
            f"{early}Best: {row['val_accuracy']:.2%} of the validation images, after epoch "
            f"{result.best_epoch + 1}.",
            printable(f"  {result.best}"),
            printable(f"  {result.best.with_name('report.html')}"),
            printable(f"Use it: torchkeep predict {result.best} IMAGE..."),
        ]
    )
