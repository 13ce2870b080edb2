"""`torchkeep convert`: a model file in another format, proven to hold the same."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchkeep.cli.limits import add_limits, limits_of
from torchkeep.cli.progress import reading_progress
from torchkeep.cli.rules import add_rename
from torchkeep.cli.text import clip, elide, wrapped
from torchkeep.wording import counted, printable

if TYPE_CHECKING:
    from torchkeep.converting import ConvertReport

DESCRIPTION = """\
Write a model file in another format. The suffix of DST chooses it:
.safetensors gets one flat state dict, .pth, .pt, .ckpt and .bin the whole tree,
so that a checkpoint stays one, and so does a folder with --to dcp. The result
is read back and compared with the source before it takes its place. Nothing in
the source runs, and no PyTorch is needed but for --dtype."""

EPILOG = """\
examples:
  torchkeep convert model.pth model.safetensors
  torchkeep convert --strip ddp.pth model.safetensors     without `module.`
  torchkeep convert --select ema last.ckpt ema.safetensors
  torchkeep convert --drop-optimizer last.ckpt small.ckpt
  torchkeep convert --rename 'encoder.*=*' --dtype float16 a.pth b.safetensors
  torchkeep convert --shard-size 5GB model.pth out/model.safetensors
  torchkeep convert run/step-00000200 model.pth           a checkpoint folder
  torchkeep convert dcp-folder model.safetensors          shards into one file
  torchkeep convert --to dcp --ranks 8 last.ckpt shards   for 8 ranks, or any

A whole model (torch.save(model)) becomes its state dict. Plain values such as
the epoch go into the metadata of a .safetensors file, and what can't go along
is listed. The file says in `converted_from` what it was made from.

The exit code is 0 if DST was written and proven, else that of the problem, and
then DST is as it was before. `torchkeep --help` lists the codes."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_MOST_LISTED = 8
"""Names of one kind that are shown; JSON has all."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "convert",
        help="write a model file in another format, and prove it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a model file of any kind, or a folder")
    parser.add_argument("path", metavar="DST", help="the new file")
    _add_choices(parser)
    parser.add_argument(
        "--dtype", metavar="NAME", help="cast floating tensors, as in float16; needs PyTorch"
    )
    parser.add_argument(
        "--allow-overflow",
        action="store_true",
        help="with --dtype, let numbers become infinite instead of refusing it",
    )
    parser.add_argument(
        "--shard-size",
        metavar="SIZE",
        type=_nbytes,
        help="split into files of this size and an index, as in 5GB (.safetensors only)",
    )
    parser.add_argument(
        "--to",
        choices=["dcp"],
        help="make DST a folder with a distributed checkpoint (torch.distributed.checkpoint)",
    )
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=int,
        default=1,
        help="with --to dcp, split it into files of so many ranks, as FSDP2 does",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is there, even SRC itself"
    )
    parser.add_argument("--json", action="store_true", help="write a report as JSON")
    add_limits(parser)
    parser.set_defaults(run=run)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Give the verb the switches that say what is written, and under which names."""
    parser.add_argument(
        "--select", metavar="NAME", help="write one state dict alone: its name, `ema`, or `auto`"
    )
    parser.add_argument(
        "--drop-optimizer", action="store_true", help="leave out the states of optimizers"
    )
    parser.add_argument(
        "--drop-objects",
        action="store_true",
        help="leave out what would need a class to be loaded, instead of refusing it",
    )
    strip = parser.add_mutually_exclusive_group()
    strip.add_argument(
        "--strip",
        action="store_true",
        help="take from the keys what DataParallel, DDP, FSDP and torch.compile put into them",
    )
    strip.add_argument(
        "--strip-prefix", metavar="PREFIX", help="take this prefix from the keys that have it"
    )
    add_rename(parser)


def run(options: argparse.Namespace) -> int:
    """Convert a file, and return 0."""
    from torchkeep.converting import convert

    report = convert(
        options.source,
        options.path,
        select=options.select,
        drop_optimizer=options.drop_optimizer,
        drop_objects=options.drop_objects,
        strip=options.strip or options.strip_prefix,
        rename=dict(options.rename),
        dtype=options.dtype,
        allow_overflow=options.allow_overflow,
        shard_nbytes=options.shard_size,
        to=options.to,
        num_ranks=options.ranks,
        overwrite=options.overwrite,
        limits=limits_of(options),
        progress=reading_progress(),
    )
    if options.json:
        sys.stdout.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
        return 0
    for line in _lines(report):
        sys.stdout.write(wrapped(line, sys.stdout, indent=4) + "\n")
    return 0


def _lines(report: ConvertReport) -> Iterator[str]:
    """Yield what a person reads: one sentence, then what is not as it was."""
    yield printable(str(report))
    if report.why:
        yield printable(f"  {report.why}")
    if report.shards:
        which = "the metadata" if report.container == "dcp" else "the index"
        yield f"  {counted(len(report.shards), 'file')} beside {which}"
    renamed = [f"{clip(key, 80)} -> {clip(name, 80)}" for key, name in report.renamed.items()]
    for title, items in (
        ("renamed", renamed),
        ("tied, stored once", list(report.tied)),
        ("now in the metadata", list(report.in_metadata)),
        ("left out", [name or "the root" for name in report.left_out]),
    ):
        if items:
            yield f"  {title}: {_listed(items)}"
    for note in report.notes[:_MOST_LISTED]:
        yield f"  {clip(note, 200)}"
    if len(report.notes) > _MOST_LISTED:
        yield f"  ... and {counted(len(report.notes) - _MOST_LISTED, 'other note')} (--json)"


def _listed(items: list[str]) -> str:
    """Return a list of names in a line, its end counted."""
    more = len(items) - _MOST_LISTED
    text = ", ".join(elide(item) for item in items[:_MOST_LISTED])
    return f"{text} and {more:,} more" if more > 0 else text


def _nbytes(text: str) -> int:
    """Return the bytes of a size such as `5GB`."""
    number = text.rstrip("BKMGTibkmgt")
    unit = _UNITS.get(text[len(number) :].strip().upper())
    try:
        value = int(float(number) * (unit or 0))
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 500MB or 5GB")
    return value
