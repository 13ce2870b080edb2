"""A written file, proven: run by its own runtime in a process of its own, and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchkeep.errors import ProofFailed
from torchkeep.exporting.examples import Case, Examples, cases_of
from torchkeep.exporting.pixels import prepared
from torchkeep.exporting.proof.parity import Comparison, Tolerance, compare
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.proof.timing import side_by_side
from torchkeep.exporting.report import Accuracy, Speed
from torchkeep.exporting.subjects import Subject
from torchkeep.exporting.targets.arrays import as_array
from torchkeep.outputs import named_tensors
from torchkeep.training.data import open_data, transform_of
from torchkeep.training.data.samples import length_of
from torchkeep.wording import counted, printable

THROUGHPUT_BATCH = 16
"""The batch size whose samples per second are told, beside the latency of one."""

Notify = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was seen of a file."""

    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    """Name, dtype and shape of each input, as the file has them."""
    comparisons: tuple[Comparison, ...]
    """Each output of each case."""
    names_checked: int
    """Images that went through the file's own preprocessing to a class's name."""
    speeds: tuple[Speed, ...]
    """By batch size."""
    accuracy: Accuracy | None
    """On validation data."""


def prove_file(
    path: Path,
    target: str,
    subject: Subject,
    examples: Examples,
    dims: Sequence[Mapping[int, str]],
    *,
    allowed: Tolerance,
    data: Any,
    notify: Notify,
) -> Proof:
    """Run a written file on what the original is run on, and compare.

    Args:
        path: the file.
        target: the name of its target.
        subject: the original, in evaluation mode.
        examples: inputs.
        dims: by input, what may vary.
        allowed: how far it may be.
        data: validation data, or None.
        notify: is told what is being done.

    Raises:
        ProofFailed: it differs.
    """
    with Session(target, path, threads=torch.get_num_threads()) as session:
        _check_inputs(path, session, examples, dims)
        cases = cases_of(examples, dims)
        comparisons: list[Comparison] = []
        for case in cases:
            notify(f"comparing {case.name}")
            comparisons += compared(path, subject.model, session, case, allowed)
        _check_comparisons(path, comparisons)
        num_names = _check_names(path, subject, examples, session)
        notify("evaluating")
        accuracy = None if data is None else _accuracies(subject, session, data, dims, notify)
        _check_accuracy(path, accuracy, allowed)
        notify("timing")
        speeds = tuple(_speeds(subject.model, session, examples, dims))
        ports = tuple((port.name, port.dtype, port.shape) for port in session.inputs)
    return Proof(ports, tuple(comparisons), num_names, speeds, accuracy)


def outputs_of(model: torch.nn.Module, args: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the original's outputs as arrays, by name."""
    with torch.inference_mode():
        # A copy, so that a layer that works in place changes no input.
        output = model(*(arg.clone() for arg in args))
        return {name or "output": as_array(tensor) for name, tensor in named_tensors(output)}


def compared(
    path: Path, model: torch.nn.Module, session: Session, case: Case, allowed: Tolerance
) -> list[Comparison]:
    """Run one case on both, and compare each output."""
    expected = outputs_of(model, case.args)
    try:
        found = session.run([arg.numpy() for arg in case.args])
    except ProofFailed as error:
        raise ProofFailed(
            f"{error.problem} ({case.name})",
            advice="The network was written with a size that it fixes: is a shape computed in "
            "Python? --dynamic none exports it for one size.",
        ) from error
    if len(found) != len(expected):
        raise ProofFailed(
            f"{printable(str(path))}: it gives {counted(len(found), 'tensor')}, and the original "
            f"{len(expected)}"
        )
    return [
        compare(case.name, name, array, other, allowed)
        for (name, array), other in zip(expected.items(), found, strict=True)
    ]


def _check_inputs(
    path: Path, session: Session, examples: Examples, dims: Sequence[Mapping[int, str]]
) -> None:
    """Make sure that what was to vary is no number in the file."""
    for port, arg, each in zip(session.inputs, examples.args, dims, strict=bool(session.inputs)):
        if any(isinstance(port.shape[at], int) for at in each) or len(port.shape) != arg.dim():
            raise ProofFailed(
                f"{printable(str(path))}: its input {printable(port.name)} is {list(port.shape)}, "
                f"and {', '.join(each.values())} was to take any size"
            )


def _check_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    wrong = [each for each in comparisons if each.problem]
    if not wrong:
        return
    first = wrong[0]
    raise ProofFailed(
        f"{printable(str(path.name))}: it does not do what the original does: {first.output} of "
        f"{first.case}: {first.problem}"
    )


def _check_names(
    path: Path,
    subject: Subject,
    examples: Examples,
    session: Session,
) -> int:
    """Use what the file says of itself, as its user will: its recipe and its classes' names."""
    if session.texts is None or not subject.is_recipe_told:
        return 0
    for key in ("classes", "preprocessing"):
        if key not in session.texts:
            raise ProofFailed(f"{printable(path.name)}: it does not say its {key}")
    names = json.loads(session.texts["classes"])
    if tuple(names) != subject.classes:
        raise ProofFailed(
            f"{printable(path.name)}: it calls its classes {', '.join(map(printable, names[:5]))}"
            f", ..., and the original {', '.join(map(printable, subject.classes[:5]))}, ..."
        )
    return _check_pictures(path, examples, session)


def _check_pictures(path: Path, examples: Examples, session: Session) -> int:
    assert session.texts is not None  # noqa: S101 (the caller has looked)
    recipe = json.loads(session.texts["preprocessing"])
    for at, picture in enumerate(examples.pictures):
        expected = examples.args[0][at].float().numpy()
        found = prepared(picture, recipe)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=1e-5):
            raise ProofFailed(
                f"{printable(path.name)}: its own preprocessing does not make of image {at + 1} "
                "what the original's does",
                advice="Its mean, its size or its scaling is another one.",
            )
    return len(examples.pictures)


def _accuracies(
    subject: Subject, session: Session, data: Any, dims: Sequence[Mapping[int, str]], notify: Notify
) -> Accuracy:
    from torch.utils.data import DataLoader

    assert subject.preprocessing is not None  # noqa: S101
    transform = transform_of(subject.preprocessing)
    samples = open_data(data, classes=subject.classes or None).transformed(transform, transform).val
    batch_size = 32 if any(0 in each for each in dims) else 1
    counts = [0, 0, 0]
    for inputs, labels in DataLoader(samples, batch_size):
        right = labels.numpy()
        (one, *_) = outputs_of(subject.model, (inputs,)).values()
        (two, *_) = session.run([inputs.numpy()])
        counts[0] += len(right)
        counts[1] += int((one.argmax(1) == right).sum())
        counts[2] += int((two.argmax(1) == right).sum())
        notify(f"evaluating, {counts[0]:,} of {length_of(samples):,} images")
    return Accuracy(*counts)


def _check_accuracy(path: Path, accuracy: Accuracy | None, allowed: Tolerance) -> None:
    if accuracy is None or accuracy.drop <= allowed.accuracy_drop:
        return
    raise ProofFailed(
        f"{printable(path.name)}: it has {accuracy.exported:,} of {accuracy.num_samples:,} images "
        f"right, and the original {accuracy.original:,}: {accuracy.drop:.2%} are lost, and "
        f"{allowed.accuracy_drop:.2%} may be",
    )


def _speeds(
    model: torch.nn.Module,
    session: Session,
    examples: Examples,
    dims: Sequence[Mapping[int, str]],
) -> list[Speed]:
    sizes = (
        (1, THROUGHPUT_BATCH) if any(0 in each for each in dims) else (len(examples.rows(1)[0]),)
    )
    found = []
    for size in sizes:
        args = examples.rows(size)

        def call(args: tuple[torch.Tensor, ...] = args) -> None:
            with torch.inference_mode():
                model(*args)

        found.append(Speed(*side_by_side(call, session, [arg.numpy() for arg in args], size)))
    return found
