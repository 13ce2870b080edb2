"""`torchkeep train`: from weights and a folder of images to a model that works."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import require_torch, write_lines
from torchkeep.cli.events import Screen, events_written
from torchkeep.cli.numbers import whole
from torchkeep.cli.progress import passing_line
from torchkeep.cli.rates import write_curve
from torchkeep.cli.settings import add_settings, settings_of
from torchkeep.errors import InexactResume, WrongArgument
from torchkeep.showing import table
from torchkeep.wording import counted, printable, shortened

if TYPE_CHECKING:
    from torchkeep.training.preparing import Prepared
    from torchkeep.training.retraining import Event, Result
    from torchkeep.training.settings import Settings
    from torchkeep.training.starting import Start
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
  torchkeep train photos/ --arch resnet50 --nproc 4       in 4 processes
  torchkeep train photos/ --weights runs/photos/best.safetensors --qat \\
      --lr 1e-4 --epochs 3 --out runs/8bits               trained for 8 bits

DATA is a folder of images, a folder per class, perhaps in train/ and val/; a
data set of torchvision such as FashionMNIST (--download fetches it); `digits`,
which scikit-learn has; or module:function, which returns two data sets.

With --nproc, or started by torchrun, processes share each batch and train one
network (DDP). With --shard each has a piece of it (FSDP2).

Ctrl-C saves and ends with exit code 75. The exit code is 0 if the training came
to its end, or that of a problem. `torchkeep --help` lists the codes."""


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
    parser.add_argument(
        "--nproc",
        metavar="N",
        type=whole(1),
        help="train in N processes of this machine, which torchrun starts (1)",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, and say how good the result is; return 0."""
    require_torch("train")
    from torchkeep.cli.processes import launch, start_of, together
    from torchkeep.training.distributed.processes import check_sharing, num_launched

    settings = settings_of(options)
    if options.show or options.find_lr:
        return _look(options, settings)
    folder = options.out or Path("runs") / Path(options.data.replace(":", "-")).resolve().name
    _refuse_inside(folder, options.data)
    if options.nproc is not None and num_launched() == 1:
        check_sharing(settings, options.nproc)
        if options.nproc > 1:
            return launch(options.words, options.nproc)
    with together(settings.device, options.nproc) as is_first:
        try:
            _train(options, settings, folder, is_first=is_first, metadata=start_of(folder))
        except InexactResume as error:
            error.advice = (
                "Start it as it was, with as many processes, or give --allow-inexact to go on all "
                "the same."
            )
            raise
    return 0


def _look(options: argparse.Namespace, settings: Settings) -> int:
    """Show what would be trained, or which rates are of use; of several processes one does."""
    from torchkeep.training.checkup import try_rates
    from torchkeep.training.distributed.processes import local_rank
    from torchkeep.training.preparing import prepare

    if local_rank():
        return 0
    prepared = prepare(options.data, replace(settings, shard=False))
    _write_start(prepared)
    if options.show:
        _write_layers(prepared)
    if options.find_lr:
        with passing_line() as tell:
            curve = try_rates(
                prepared,
                lambda done, total: tell(f"trying learning rates: {done} of {total} steps"),
            )
        write_curve(curve, settings.lr)
    return 0


def _train(
    options: argparse.Namespace,
    settings: Settings,
    folder: Path,
    *,
    is_first: bool,
    metadata: Mapping[str, Any],
) -> None:
    from torchkeep.training.preparing import prepare
    from torchkeep.training.retraining import retrain

    prepared = prepare(options.data, settings)
    if not is_first:
        retrain(prepared, folder, metadata=metadata)
        return
    _write_start(prepared)
    with Screen(settings) as screen, events_written(options.events) as write:

        def notify(event: Event) -> None:
            screen.show(event)
            write(event)

        result = retrain(prepared, folder, notify=notify, metadata=metadata)
    _write_result(result, options.data, prepared.card.arch, in_8_bits=settings.qat)


def _refuse_inside(folder: Path, data: str) -> None:
    """Refuse a run's folder among the data, where the next start would take it for a class."""
    if Path(data).is_dir() and folder.resolve().is_relative_to(Path(data).resolve()):
        raise WrongArgument(
            f"the run {printable(str(folder))} would lie in its own data",
            advice="Choose a folder elsewhere with --out.",
        )


_COLOURS = {1: "grey, ", 3: ""}


def _write_start(prepared: Prepared) -> None:
    from torchkeep.training.data.samples import length_of

    data, begun, card = prepared.data, prepared.start, prepared.card
    recipe = card.preprocessing
    parameters = list(begun.model.parameters())
    num_trained = sum(item.numel() for item in parameters if item.requires_grad)
    lines = [
        f"data      {data.source}: {counted(len(data.classes), 'class')}, "
        f"{length_of(data.train):,} images to train on, {length_of(data.val):,} to validate",
        f"network   {card.arch} {_origin(begun)}",
        f"trained   {num_trained:,} of {sum(item.numel() for item in parameters):,} parameters",
        f"images    {recipe.width} x {recipe.height}, "
        f"{_COLOURS.get(recipe.num_channels, f'{recipe.num_channels} channels, ')}"
        f"{prepared.settings.augment.replace('none', 'no')} augmentation",
        f"device    {prepared.device}{_processes(prepared)}",
    ]
    if begun.new_classes:
        names = ", ".join(shortened(name) for name in begun.new_classes[:5])
        more = ", ..." if len(begun.new_classes) > 5 else ""
        lines.insert(2, f"new       {counted(len(begun.new_classes), 'class')}: {names}{more}")
    if prepared.settings.qat:
        lines.insert(-2, f"8 bits    {_in_8_bits(begun)}")
    lines += [f"left out  {text}" for text in data.skipped]
    write_lines(map(printable, lines), indent=10)


def _processes(prepared: Prepared) -> str:
    from torchkeep.checkpointing.ranks import Ranks

    size = Ranks.here().size
    if size == 1:
        return ""
    how = "a piece of the network each" if prepared.settings.shard else "all of the network each"
    share = counted(prepared.settings.batch_size // size, "image")
    return f", {size} processes: {how}, {share} of a batch"


def _in_8_bits(begun: Start) -> str:
    from torchkeep.training.quantizing import input_ranges, layers_in_float

    others = [f"{number:,} {kind}" for kind, number in layers_in_float(begun.model).items()]
    more = f"; in float: {', '.join(others)}" if others else ""
    return f"weights and inputs of {counted(len(input_ranges(begun.model)), 'layer')}{more}"


def _origin(begun: Start) -> str:
    from torchkeep.training.starting import NO_WEIGHTS

    if begun.weights == NO_WEIGHTS:
        return "with fresh values"
    return f"from {begun.weights}{', with a new head' if begun.has_new_head else ''}"


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


def _write_result(result: Result, data: str, arch: str, *, in_8_bits: bool) -> None:
    from torchkeep.networks import is_of_library

    folder = result.best.parent
    name = f"{folder.resolve().name}.onnx"
    own = [] if is_of_library(arch) else ["--arch", arch]
    precision = ["--precision", "int8"] if in_8_bits else []
    use = shlex.join(["predict", str(result.best), *own])
    ship = shlex.join(["export", str(folder), name, "--data", data, *own, *precision])
    row = result.history[result.best_epoch]
    early = "It stopped early, since nothing got better. " if result.stopped_early else ""
    write_lines(
        [
            f"{early}Best: {row['val_accuracy']:.2%} of the validation images"
            f"{' in 8 bits' if in_8_bits else ''}, after epoch {result.best_epoch + 1}.",
            printable(f"  {result.best}"),
            printable(f"  {result.best.with_name('report.html')}"),
            printable(f"Use it: torchkeep {use} IMAGE..."),
            printable(f"Ship it: torchkeep {ship}"),
        ]
    )
