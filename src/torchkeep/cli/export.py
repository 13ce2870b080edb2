"""`torchkeep export`: a network as a deployment file, proven."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.cli.checkpoints import require_torch, write_lines
from torchkeep.cli.numbers import add_sizes, sizes_of, whole
from torchkeep.cli.progress import passing_line
from torchkeep.errors import ClassesMissing, WrongArgument
from torchkeep.wording import printable

if TYPE_CHECKING:
    from torchkeep.exporting import Exported, Target, Tolerance

DESCRIPTION = """\
Write a network as a deployment file, and prove it: the written file is run by
its own runtime, in a process that has nothing of the original, on your inputs,
and compared with the original. A file that differs gets no name."""

EPILOG = """\
targets:
  onnx          what most runtimes and clouds read: onnxruntime, TensorRT, ...
  pt2           torch.export's own: PyTorch runs it without the classes
  torchscript   for what runs no .pt2 yet; deprecated by PyTorch
  openvino      OpenVINO's .xml and .bin: Intel's processors, and its servers
  executorch    .pte, for phones and small devices: the extra torchkeep[executorch]

examples:
  torchkeep export runs/photos photos.onnx --data photos
  torchkeep export runs/photos photos.pt2 --example some/images
  torchkeep export best.safetensors photos-int8.onnx --precision int8 \\
      --data photos
  torchkeep export theirs.pth theirs.onnx --arch timm/convnext_atto
  torchkeep export whole.pt net.ts --to torchscript --by script \\
      --example inputs.npy
  torchkeep export runs/photos photos.onnx --data photos --prove
                                         is the file there still right?

Without --example or --data, random numbers stand in for real inputs, and the
report says so. Beside the file lies FILE.json, with all that was measured.

The exit code is 0 if there is a file, and it is proven; 1 if it does not do
what the original does, and 15 if the target can't hold the network: then there
is none. `torchkeep --help` lists the other codes."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "--precision": {
        "metavar": "P",
        "help": "float32 (default); float16 (all but executorch); bfloat16 (pt2, torchscript); "
        "int8 (onnx, pt2, openvino); int8-dynamic (onnx)",
    },
    "--opset": {
        "metavar": "N",
        "type": whole(1),
        "help": "onnx, openvino: the version of ONNX's operators",
    },
    "--external-data": {
        "action": "store_true",
        "default": None,
        "help": "onnx: the weights in a file beside it; above 1.5 GB they always are",
    },
    "--calibration-method": {
        "metavar": "HOW",
        "help": "onnx, int8: ranges by minmax (default), percentile or entropy",
    },
    "--by": {"metavar": "HOW", "help": "torchscript: trace (default) or script"},
    "--optimize": {
        "action": "store_true",
        "default": None,
        "help": "torchscript: frozen, BatchNorm folded into convolutions",
    },
    "--lite": {
        "action": "store_true",
        "default": None,
        "help": "torchscript: for the lite interpreter of phones",
    },
    "--compile": {
        "action": "store_true",
        "default": None,
        "help": "pt2: machine code for this kind of processor (AOTInductor); takes a minute",
    },
    "--largest-batch": {
        "metavar": "N",
        "type": whole(1),
        "help": "executorch: images at once at the most, for which memory is set aside (32)",
    },
    "--largest-size": {
        "metavar": "N",
        "type": whole(1),
        "help": "executorch: the largest height, width, ... that may vary (twice the example's)",
    },
}
"""What a target may be told; each is a field of some targets."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb to the command line."""
    parser = verbs.add_parser(
        "export",
        help="write a network for production, proven",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a run's folder, or a model file of any kind"
    )
    parser.add_argument("output", metavar="OUT", help="the new file")
    parser.add_argument(
        "--to", metavar="TARGET", help="what to write; by default what OUT's suffix says"
    )
    _add_subject(parser.add_argument_group("what it is"))
    _add_proof(parser.add_argument_group("what it is proven with"))
    _add_target(parser.add_argument_group("how it is written"))
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--json", action="store_true", help="write the report as JSON")
    parser.set_defaults(run=run)


def _add_subject(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--arch",
        metavar="NAME",
        help="its network: torchvision/NAME, timm/NAME, or module:callable, which is imported; "
        "without it, the one that the file tells",
    )
    add_sizes(what)
    what.add_argument("--select", metavar="KEY", default="auto", help="which model of the file")
    what.add_argument(
        "--trust",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="a package whose classes a whole model may be made of; may be given several times",
    )


def _add_proof(proof: argparse._ArgumentGroup) -> None:
    proof.add_argument(
        "--example",
        metavar="DATA",
        help="inputs: images, a data set as for train, or a file of tensors (.npy, .npz, .pt, "
        ".safetensors); several inputs by the names that forward has for them",
    )
    proof.add_argument(
        "--data", metavar="DATA", help="validation data: accuracy before and after; examples, too"
    )
    proof.add_argument(
        "--all", action="store_true", help="all images of --data, not those for validation alone"
    )
    proof.add_argument(
        "--dynamic",
        metavar="WHAT",
        default="batch",
        help="what may vary: batch (default), sizes (height and width, too), none",
    )
    for name, text in (
        ("--rtol", "the largest difference, as a share of the output's largest value"),
        ("--agreement", "the least share of images with the same class"),
        ("--accuracy-drop", "what accuracy may be lost: 0.01 is one point"),
    ):
        proof.add_argument(name, metavar="X", type=float, help=text)
    proof.add_argument(
        "--prove", action="store_true", help="write nothing: prove the file that is there"
    )


def _add_target(how: argparse._ArgumentGroup) -> None:
    for name, settings in _OPTIONS.items():
        how.add_argument(name, **settings)
    how.add_argument(
        "--pixels",
        action="store_true",
        help="the file normalises by itself: it takes pixels from 0 to 255, as uint8",
    )
    how.add_argument(
        "--calibrate", metavar="DATA", help="int8: images for its ranges; by default of --data"
    )


def run(options: argparse.Namespace) -> int:
    """Export, say how it went, and return 0.

    Raises:
        TorchkeepError: see `torchkeep.export`.
    """
    require_torch("export")
    with passing_line() as show:
        show("starting PyTorch")
        report = _exported(options, show)
    if options.json:
        sys.stdout.write(json.dumps(report.to_json(), allow_nan=False) + "\n")
        return 0
    from torchkeep.exporting.report import headlines, tables

    write_lines(headlines(report))
    sys.stdout.writelines(f"{line}\n" for line in tables(report))
    return 0


def _exported(options: argparse.Namespace, show: Callable[[str], None]) -> Exported:
    from torchkeep.exporting import export, open_subject, prove, taking_pixels

    target = _target(options)
    show(f"reading {printable(options.model)}")
    try:
        subject = open_subject(
            options.model,
            arch=options.arch,
            **sizes_of(options),
            select=options.select,
            trust=tuple(options.trust),
        )
    except ClassesMissing as error:
        error.advice = _ways_in(error)
        raise
    subject = taking_pixels(subject) if options.pixels else subject
    how: dict[str, Any] = {
        "target": target,
        "example": options.example,
        "data": options.data,
        "whole": options.all,
        "dynamic": options.dynamic,
        "tolerance": _tolerance(options, target),
        "notify": show,
    }
    if options.prove:
        return prove(subject, options.output, **how)
    how |= {"calibration": options.calibrate, "overwrite": options.overwrite}
    return export(subject, options.output, **how)


def _ways_in(error: ClassesMissing) -> str:
    """Return what helps on the command line, in place of the calls of Python and the tree."""
    packages = dict.fromkeys(name.partition(".")[0] for name in error.names)
    trusted = " ".join(f"--trust {package}" for package in packages)
    return (
        f"If they can be imported here, and you trust them: {trusted}. Without them: "
        f"torchkeep rescue {error.path} FOLDER takes out weights and structure."
    )


def _target(options: argparse.Namespace) -> Target:
    """Return the target with what it was told.

    Raises:
        WrongArgument: it has no such option.
    """
    from torchkeep.exporting.flow import chosen_target

    plain = chosen_target(options.to, Path(options.output))
    told = {}
    for switch in _OPTIONS:
        name = switch.removeprefix("--").replace("-", "_")
        value = getattr(options, name)
        if value is None:
            continue
        if name not in plain.__dataclass_fields__:
            raise WrongArgument(f"the target {plain.name} has no {switch}", advice="Leave it out.")
        told[name] = value
    return replace(plain, **told)


def _tolerance(options: argparse.Namespace, target: Target) -> Tolerance:
    from torchkeep.exporting import TOLERANCES

    names = ("rtol", "agreement", "accuracy_drop")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    usual = TOLERANCES[target.precision]
    # Whoever gives a bound means it: then no result outside it is right for being as exact.
    return replace(usual, **given, or_as_exact=usual.or_as_exact and "rtol" not in given)
