"""`torchkeep slim`: a network with fewer channels, to be retrained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import require_torch
from torchkeep.cli.numbers import add_sizes, sizes_of, whole
from torchkeep.cli.text import wrapped
from torchkeep.errors import SaveRefused, WrongArgument
from torchkeep.wording import counted, printable, size

if TYPE_CHECKING:
    from torch import nn

    from torchkeep.saving import SaveReport
    from torchkeep.training.classifier import Card
    from torchkeep.training.pruning import SlimReport

DESCRIPTION = """\
Take a share of the channels out of every layer of a network and write what is
left. The network is smaller and faster, and has to be retrained: until then it
is worse. The file is one of plain weights; how wide the layers are is in its
metadata, and torchkeep.training.pruning.load_slim builds the network from it."""

EPILOG = """\
examples:
  torchkeep slim runs/photos/best.safetensors --ratio 0.5 --data photos \\
      -o slim.safetensors
  torchkeep train photos --weights slim.safetensors      retrain it
  torchkeep slim theirs.pth --arch timm/convnext_atto --num-classes 10 \\
      --ratio 0.3 --keep 'stages.3' -o slim.safetensors

What `torchkeep train` has written says its network, classes and images itself,
and what is left of it can be evaluated, used and retrained likewise.

What the outputs come from keeps its outputs, and attention its width. Half of
the channels are about three quarters of a convolutional network's parameters.
Needs Torch-Pruning; loading the result does not.

The exit code is 0 if the file was written, else that of the problem.
`torchkeep --help` lists the codes."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "slim",
        help="make a network smaller, to be retrained",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="MODEL", help="a model file of any kind")
    parser.add_argument(
        "--arch",
        metavar="NAME",
        help="its network: torchvision/NAME, timm/NAME, or module:callable, which is imported; "
        "without it, the one that the file tells",
    )
    add_sizes(parser)
    parser.add_argument(
        "--ratio", metavar="R", type=float, required=True, help="the share of channels that goes"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the new file")
    parser.add_argument(
        "--keep",
        metavar="PATTERN",
        action="append",
        default=[],
        help="a module that keeps its outputs; may be given several times",
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=whole(1),
        help="pixels of an image's side; by default 224, or what the file tells",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="say how good it is before and after, on the images that "
        "torchkeep evaluate would take",
    )
    parser.add_argument(
        "--multiple-of", metavar="N", type=whole(1), default=1, help="round the widths down to this"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--json", action="store_true", help="write a report as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Slim a network, write it, and return 0.

    Raises:
        SaveRefused: the new file is there already.
        WrongArgument: nothing tells what the network is, or what its outputs stand for.
    """
    require_torch("slim")
    from torchkeep.training.classifier import read_card

    _refuse_existing(options)
    card = read_card(options.file)
    report, saved = _slim_weights(options) if card is None else _slim_classifier(options, card)
    if options.json:
        sys.stdout.write(json.dumps(_document(report, saved), allow_nan=False) + "\n")
        return 0
    for line in _lines(report, saved):
        sys.stdout.write(wrapped(line, sys.stdout, indent=4) + "\n")
    return 0


def _slim_weights(options: argparse.Namespace) -> tuple[SlimReport, SaveReport]:
    """Slim a network of which there are weights alone."""
    import torch

    from torchkeep.loading import load_into
    from torchkeep.networks import build, recognised
    from torchkeep.training.pruning import save_slim, slim

    if options.data is not None:
        raise WrongArgument(
            f"{printable(options.file)} does not say its classes, so that it can't be evaluated",
            advice="Leave --data out, or slim what torchkeep train has written.",
        )
    arch, told = options.arch, sizes_of(options)
    if arch is None:
        arch, num_classes = recognised(options.file)
        told["num_classes"] = told["num_classes"] or num_classes
    model = build(arch, **told)
    load_into(model, options.file)
    side = options.size or 224
    inputs = torch.zeros(1, options.input_channels or 3, side, side)
    report = slim(model, options.ratio, inputs=inputs, **_how(options))
    report = replace(report, structure=replace(report.structure, network=arch, **told))
    return report, save_slim(model, options.output, report.structure, overwrite=options.overwrite)


def _slim_classifier(options: argparse.Namespace, card: Card) -> tuple[SlimReport, SaveReport]:
    """Slim what says of itself what it is, and have it say that afterwards, too."""
    import torch

    from torchkeep.training.classifier import load_classifier, save_classifier, unslimmed
    from torchkeep.training.pruning import describe_structure, slim

    model, _ = load_classifier(options.file, arch=options.arch)
    recipe = card.preprocessing
    sides = (options.size or recipe.height, options.size or recipe.width)
    inputs = torch.zeros(1, recipe.num_channels, *sides)
    evaluate = None if options.data is None else _accuracy_on(options.data, card)
    report = slim(model, options.ratio, inputs=inputs, evaluate=evaluate, **_how(options))
    # It may have been slimmed before: the file says how it differs from the network of its name.
    whole_one = unslimmed(card, options.arch)
    structure = describe_structure(whole_one, model, network=options.arch or card.arch)
    slimmed = replace(card, structure=structure, qat=None)
    saved = save_classifier(model, slimmed, options.output, overwrite=options.overwrite)
    return replace(report, structure=structure), saved


def _how(options: argparse.Namespace) -> dict[str, Any]:
    return {"keep": options.keep, "multiple_of": options.multiple_of}


def _accuracy_on(source: str, card: Card) -> Callable[[nn.Module], float]:
    from torch.utils.data import DataLoader

    from torchkeep.training.data import open_data, transform_of
    from torchkeep.training.evaluation import evaluate

    transform = transform_of(card.preprocessing)
    data = open_data(source, classes=card.classes).transformed(transform, transform)
    return lambda model: evaluate(model, DataLoader(data.val, 64)).accuracy


def _refuse_existing(options: argparse.Namespace) -> None:
    """Say before the work, and not after it, that there is no place for what comes out of it."""
    if Path(options.output).exists() and not options.overwrite:
        raise SaveRefused(
            f"{printable(options.output)} is there already",
            advice="Give --overwrite to replace it.",
        )


def _lines(report: SlimReport, saved: SaveReport) -> Iterator[str]:
    before, after = report.before, report.after
    yield printable(f"{saved.path}: {counted(len(report.structure.layers), 'layer')} narrower")
    for what, one, two in (
        ("parameters", f"{before.num_parameters:,}", f"{after.num_parameters:,}"),
        ("weights", size(before.nbytes), size(after.nbytes)),
        ("multiply-accumulates", f"{before.num_macs:,}", f"{after.num_macs:,}"),
    ):
        yield f"  {what}: {two} of {one}"
    if report.score_before is not None:
        yield f"  accuracy: {report.score_after:.2%}, and was {report.score_before:.2%}"
    yield f"  time of a call here: {report.latency.ratio:.2f} times what it was"
    yield f"  Retrain it: torchkeep train DATA --weights {printable(str(saved.path))}"


def _document(report: SlimReport, saved: SaveReport) -> dict[str, Any]:
    return {
        "schema": 1,
        "path": str(saved.path),
        "ratio": report.ratio,
        "before": asdict(report.before),
        "after": asdict(report.after),
        "accuracy": {"before": report.score_before, "after": report.score_after},
        "latency": asdict(report.latency) | {"ratio": report.latency.ratio},
        "structure": report.structure.to_json(),
    }
