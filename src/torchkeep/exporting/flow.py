"""The whole flow: a network to a deployment file that is proven, or to none.

1. The original runs on real inputs, in evaluation mode.
2. The target writes the file into a folder of its own, beside the place where it is to be.
3. A process that has only the file runs it (`proof.session`), on the same inputs.
4. The outputs are compared, what the file says of itself is used and compared, and both are timed.
5. The file takes its name. If anything is not as it has to be, there is none.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchkeep
from torchkeep.errors import (
    DamagedFile,
    ExportRefused,
    MissingExtra,
    ProofFailed,
    SaveRefused,
    WrongArgument,
)
from torchkeep.exporting.cases import EXPORT_BATCH, Dynamic, cases_of, let_vary
from torchkeep.exporting.examples import read_examples, validation_of
from torchkeep.exporting.proof.parity import TOLERANCES, Tolerance
from torchkeep.exporting.proving import WRITER, Notify, Task, failure, outputs_of, prove_file
from torchkeep.exporting.publishing import (
    explaining_disk_errors,
    publish,
    refuse_source,
    refuse_taken,
    report_path,
    staging_folder,
)
from torchkeep.exporting.records import record_export
from torchkeep.exporting.report import Exported, WrittenFile
from torchkeep.exporting.subjects import Subject, open_subject
from torchkeep.exporting.targets import TARGETS, Program, Target
from torchkeep.files import CHUNK_NBYTES, InputFile, digest_of_pieces
from torchkeep.modes import evaluating
from torchkeep.wording import printable


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    target: str | Target | None = None,
    example: Any = None,
    data: str | os.PathLike[str] | None = None,
    whole: bool = False,
    calibration: Any = None,
    dynamic: Dynamic = "batch",
    tolerance: Tolerance | None = None,
    overwrite: bool = False,
    notify: Notify = lambda _: None,
) -> Exported:
    """Write a network as a deployment file, and prove it.

    Args:
        model: a live module, a run's folder, a file, or what `open_subject` returned.
        path: the file; its folder must exist. `<path>.json` with the proof is written beside it.
        target: `onnx`, `pt2`, `torchscript`, ..., or one with options, such as `Onnx(opset=20)`.
            None for what the path's suffix says.
        example: inputs to prove it with: see `read_examples`.
        data: validation data, as `torchkeep train` takes them: accuracy before and after.
        whole: all of `data` is for validation, also what is there to train on.
        calibration: inputs from which a quantized file learns the ranges of its activations, given
            as `example` is; by default the images that the network was to be trained on in `data`,
            or the example.
        dynamic: what may vary: see `let_vary`.
        tolerance: how far the file may be from the original; by default what is usual for the
            precision (`TOLERANCES`).
        overwrite: replace what is there.
        notify: is told what is being done.

    Raises:
        ExportRefused: the target can't hold the network.
        ProofFailed: the file does not do what the original does. There is no file then.
        SaveRefused: the place is taken, or the system refuses.
        MissingExtra: what the target needs is not installed.
        WrongArgument: an argument fits nothing.
        FileProblem: a file is missing or can't be read.
    """
    begin = time.monotonic()
    named, final = Path(path), Path(os.path.realpath(path))
    chosen = chosen_target(target, named)
    parts = _parts_of(chosen, final)
    places = [final, *parts, report_path(final)]
    refuse_taken(places, overwrite=overwrite)
    task = _task(model, chosen, example, data, whole, dynamic, tolerance, notify)
    refuse_source(places, task.subject.file)
    with evaluating(task.subject.model), staging_folder(final) as folder:
        program = _program(task)
        if chosen.precision == "int8":
            source, whole = (data, whole) if calibration is None else (calibration, False)
            seen = _calibration(task, source, whole=whole)
            program = replace(program, calibration=seen, ranges=task.subject.ranges)
        notify(f"writing {chosen.name}")
        with explaining_disk_errors(final):
            chosen.write(program, folder / final.name)
        files = sorted(folder.iterdir())
        report = _proven(task, folder / final.name, files, begin, is_ours=True)
        publish(folder, final, report, overwrite=overwrite, parts=parts)
    report = replace(report, path=named)
    if task.subject.run is not None:
        try:
            record_export(task.subject.run, report)
        except (SaveRefused, DamagedFile) as error:
            error.advice = f"{final.name} is proven, and there. {error.advice}".rstrip()
            raise
    return report


def prove(
    model: Any,
    path: str | os.PathLike[str],
    *,
    target: str | Target | None = None,
    example: Any = None,
    data: str | os.PathLike[str] | None = None,
    whole: bool = False,
    dynamic: Dynamic = "batch",
    tolerance: Tolerance | None = None,
    notify: Notify = lambda _: None,
) -> Exported:
    """Prove a deployment file that is there already, whoever has written it.

    To run a file is to run what is in it: prove none that you would not use.

    Args:
        model: the original: see `export`, as for all that follows.
        path: the file.
        target: what it is.
        example: inputs to prove it with.
        data: validation data.
        whole: all of it, also what is there to train on.
        dynamic: what is to vary in it.
        tolerance: how far it may be from the original.
        notify: is told what is being done.

    Raises:
        ProofFailed: the file does not do what the original does: it is damaged, of another network
            or of older weights.
        MissingExtra: its runtime is not installed.
        WrongArgument: an argument fits nothing.
        FileProblem: a file is missing or can't be read.
    """
    begin = time.monotonic()
    file = Path(path)
    chosen = chosen_target(target, file)
    task = _task(model, chosen, example, data, whole, dynamic, tolerance, notify)
    beside = [part for part in _parts_of(chosen, file) if part.is_file()]
    try:
        return _proven(task, file, sorted([file, *beside]), begin, is_ours=False)
    except ProofFailed as error:
        if chosen.precision == "float32" and not error.advice:
            error.advice = (
                "Is it of another network, or of older weights? If it was written with another "
                "precision, say so (--precision)."
            )
        raise


def _parts_of(target: Target, path: Path) -> list[Path]:
    """Return where what belongs to a file is, if it is beside it."""
    return [path.with_name(each.format(name=path.name, stem=path.stem)) for each in target.beside]


def _task(
    model: Any,
    target: Target,
    example: Any,
    data: Any,
    whole: bool,
    dynamic: Dynamic,
    tolerance: Tolerance | None,
    notify: Notify,
) -> Task:
    _require(target)
    notify("reading the network")
    subject = open_subject(model)
    examples = read_examples(subject, data if example is None else example, whole=whole)
    validation = None if data is None else validation_of(subject, data, whole=whole)
    examples = let_vary(examples, dynamic)
    tolerance = tolerance or TOLERANCES[target.precision]
    return Task(target, subject, examples, tolerance, validation, notify)


def chosen_target(target: str | Target | None, path: Path) -> Target:
    """Return the target that is meant, by its name or by the file's suffix.

    Raises:
        WrongArgument: there is none of that name, or the suffix tells none.
    """
    if target is not None and not isinstance(target, str):
        return target
    for each in TARGETS:
        if target == each.name or (target is None and path.name.endswith(each.suffixes)):
            return each()
    names = ", ".join(each.name for each in TARGETS)
    if target is not None:
        raise WrongArgument(
            f"there is no target called {printable(repr(target))}", advice=f"Choose one of {names}."
        )
    suffixes = ", ".join(f"{each.suffixes[0]} ({each.name})" for each in TARGETS)
    raise WrongArgument(
        f"{printable(path.name)}: its suffix tells no target",
        advice=f"These do: {suffixes}. Or say which (target=, --to).",
    )


def _require(target: Target) -> None:
    missing = [name for name in target.modules if find_spec(name) is None]
    if missing:
        raise MissingExtra.for_modules(f"the target {target.name}", missing, target.extra)


def _program(task: Task) -> Program:
    subject, examples = task.subject, task.examples
    args = examples.rows(examples.call_size(EXPORT_BATCH))
    try:
        outputs = [outputs_of(subject.model, args) for _ in range(2)]
    except Exception as error:  # the network is the caller's, and raises anything
        raise WrongArgument(
            f"the network can't be run on the example, {failure(args, error)}",
            advice="Give an example of the shapes and types that it takes.",
        ) from error
    _check_sizes(task)
    names = tuple(outputs[0])
    if not names:
        raise ExportRefused("the network returns no tensor", advice="Wrap it so that it does.")
    pairs = zip(outputs[0].values(), outputs[1].values(), strict=True)
    if any(not np.array_equal(one, two, equal_nan=one.dtype.kind == "f") for one, two in pairs):
        raise ExportRefused(
            "the network gives something else each time, in evaluation mode as well",
            advice="Is Dropout called with training=True? A file of it can't be compared.",
        )
    return Program(subject.model, args, examples.names, names, examples.dynamic, _metadata(subject))


def _check_sizes(task: Task) -> None:
    """Make sure that the original takes each size that the file is to take."""
    for case in cases_of(task.examples):
        try:
            outputs_of(task.subject.model, case.args)
        except Exception as error:  # the network is the caller's, and raises anything
            raise ExportRefused(
                "the network takes one size alone where it was to take any: it can't be run on "
                f"{case.name}, {failure(case.args, error)}",
                advice="Let less vary: dynamic='batch' (the default) or 'none' (--dynamic).",
            ) from error


def _calibration(task: Task, source: Any, *, whole: bool) -> list[tuple[torch.Tensor, ...]]:
    """Return real inputs, in batches of one: a runtime may know that size alone while it counts.

    Where the file has another number of rows, and no other, in batches of that.

    Args:
        task: what is exported.
        source: the inputs; None for the examples.
        whole: all of a data set is for validation.

    Raises:
        WrongArgument: there are none: ranges of random numbers fit no image.
    """
    examples = task.examples
    if source is None and not examples.is_real and not task.subject.ranges:
        raise WrongArgument(
            "int8 learns from real inputs what lies between which values, and there are none",
            advice="Give images to train on: data= or calibration= (--data or --calibrate).",
        )
    count = examples.call_size(1)
    if source is not None:
        found = read_examples(task.subject, source, part="train", whole=whole)
        examples = replace(found, dynamic=examples.dynamic)
    return [examples.rows(count, at) for at in range(0, examples.num_rows, count)]


def _metadata(subject: Subject) -> dict[str, str]:
    """Return what a file says of itself: the same names as in the files of `torchkeep train`."""
    # A file's name may be no Unicode, which a deployment file's metadata is.
    metadata = {"source": printable(subject.source), WRITER: torchkeep.__version__}
    if subject.arch:
        metadata["arch"] = subject.arch
    if subject.classes:
        metadata["classes"] = json.dumps(list(subject.classes))
    if (recipe := subject.recipe()) is not None:
        metadata["preprocessing"] = json.dumps(recipe)
    return metadata


def _proven(
    task: Task, path: Path, files: Iterable[Path], begin: float, *, is_ours: bool
) -> Exported:
    """Prove a written file, and return what is told of it."""
    target, subject, examples = task.target, task.subject, task.examples
    proof = prove_file(task, path, is_ours=is_ours)
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    return Exported(
        path=path,
        target=target.name,
        options={key: getattr(target, key) for key in target.__dataclass_fields__},
        source=subject.source,
        example=examples.described,
        is_real=examples.is_real,
        files=tuple(map(_described, files)),
        original_nbytes=sum(tensor.nbytes for tensor in tensors),
        inputs=proof.inputs,
        tolerance=task.tolerance,
        comparisons=proof.comparisons,
        notes=tuple(_notes(task)),
        images_prepared=proof.images_prepared,
        speeds=proof.speeds,
        accuracy=proof.accuracy,
        versions=_versions(target),
        seconds=time.monotonic() - begin,
    )


def _notes(task: Task) -> Iterator[str]:
    subject = task.subject
    if subject.preprocessing is not None and not subject.is_recipe_told:
        yield (
            f"images are prepared as is usual for {subject.arch or 'such a network'}: "
            f"{subject.source} does not say how"
        )
    if subject.preprocessing is not None and not subject.classes:
        yield f"it names no classes: {subject.source} has no names"
    if subject.ranges and task.target.precision == "float32":
        yield "it was trained for 8 bits: precision int8 takes the ranges that it has learnt"
    if subject.ranges and task.target.precision == "int8":
        yield "trained for 8 bits: its outputs are compared with what it computes in 8 bits"


def _described(path: Path) -> WrittenFile:
    with InputFile(path) as file:
        starts = range(0, file.nbytes, CHUNK_NBYTES)
        pieces = (file.read_at(at, min(CHUNK_NBYTES, file.nbytes - at)) for at in starts)
        return WrittenFile(path.name, file.nbytes, digest_of_pieces(pieces))


def _versions(target: Target) -> dict[str, str]:
    found = {"python": platform.python_version(), "torchkeep": torchkeep.__version__}
    for name in ("torch", *target.modules):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
