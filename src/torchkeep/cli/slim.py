"""`torchkeep slim`: a network with fewer channels, to be retrained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import require_torch
from torchkeep.cli.numbers import whole
from torchkeep.cli.text import wrapped
from torchkeep.errors import SaveRefused
from torchkeep.wording import counted, printable, size

if TYPE_CHECKING:
    from torchkeep.saving import SaveReport
    from torchkeep.training.pruning import SlimReport, SlimStructure

DESCRIPTION = """\
Take a share of the channels out of every layer of a network and write what is
left. The network is smaller and faster, and has to be retrained: until then it
is worse. The file is one of plain weights; how wide the layers are is in its
metadata, and torchkeep.training.pruning.load_slim builds the network from it."""

EPILOG = """\
examples:
  torchkeep slim model.pth --arch torchvision/resnet18 --ratio 0.5 \\
      -o slim.safetensors
  torchkeep slim mine.pth --arch timm/convnext_atto --num-classes 10 \\
      --ratio 0.3 --keep 'stages.3' -o slim.safetensors

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
        required=True,
        help="its network: torchvision/NAME, timm/NAME, or module:callable, which is imported",
    )
    parser.add_argument("--num-classes", metavar="N", type=whole(1), help="its number of classes")
    parser.add_argument(
        "--input-channels", metavar="N", type=whole(1), help="its input channels (timm)"
    )
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
        "--size", metavar="N", type=whole(1), default=224, help="pixels of an image's side (224)"
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
    """
    require_torch("slim")
    import torch

    from torchkeep.loading import load_into
    from torchkeep.networks import build
    from torchkeep.training.pruning import save_slim, slim

    _refuse_existing(options)
    told = {"num_classes": options.num_classes, "input_channels": options.input_channels}
    model = build(options.arch, **told)
    load_into(model, options.file)
    inputs = torch.zeros(1, options.input_channels or 3, options.size, options.size)
    report = slim(
        model, options.ratio, inputs=inputs, keep=options.keep, multiple_of=options.multiple_of
    )
    structure = replace(report.structure, network=options.arch, **told)
    saved = save_slim(model, options.output, structure, overwrite=options.overwrite)
    if options.json:
        sys.stdout.write(json.dumps(_document(report, structure, saved), allow_nan=False) + "\n")
        return 0
    for line in _lines(report, saved):
        sys.stdout.write(wrapped(line, sys.stdout, indent=4) + "\n")
    return 0


def _refuse_existing(options: argparse.Namespace) -> None:
    """Say before the work, and not after it, that there is no place for what comes out of it."""
    from pathlib import Path

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
    yield f"  time of a call here: {report.latency.ratio:.2f} times what it was"
    yield f"  Retrain it: torchkeep train DATA --weights {printable(str(saved.path))}"


def _document(report: SlimReport, structure: SlimStructure, saved: SaveReport) -> dict[str, Any]:
    return {
        "schema": 1,
        "path": str(saved.path),
        "ratio": report.ratio,
        "before": asdict(report.before),
        "after": asdict(report.after),
        "latency": asdict(report.latency) | {"ratio": report.latency.ratio},
        "structure": structure.to_json(),
    }
