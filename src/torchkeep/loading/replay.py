"""A loaded model proven by what it does: on the samples and by the metric that its file carries."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from torchkeep.errors import DamagedFile, FileProblem, ProofFailed, WrongArgument
from torchkeep.formats import describe
from torchkeep.formats.own.metadata import METRIC, SAMPLES
from torchkeep.formats.own.samples import Sample, Samples, SampleTensor, decode_samples
from torchkeep.formats.plain_json import json_or_text
from torchkeep.modes import evaluating
from torchkeep.outputs import (
    ATOL,
    OutputDifference,
    Preprocess,
    default_rtol,
    difference,
    generators_kept,
    place_of,
    run,
)
from torchkeep.saving.samples import live, live_tensor
from torchkeep.tensors import torch_dtype
from torchkeep.wording import counted

Metric = Callable[[torch.nn.Module], float]
"""Evaluates a model."""

METRIC_RTOL = 1e-3
"""By how much a metric may differ: a few samples near the border fall on its other side on another
machine."""

_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """A stored metric and what the model reaches now."""

    name: str
    """Its name."""
    expected: float
    """What was stored."""
    found: float
    """What the model reaches now."""
    allowed: float
    """The difference that is allowed."""

    @property
    def is_close(self) -> bool:
        """Whether it is as near as it has to be."""
        return abs(self.found - self.expected) <= self.allowed


@dataclass(frozen=True, slots=True)
class Replay:
    """How a model does on the samples and by the metrics that a file carries."""

    path: Path
    """The file."""
    num_samples: int
    """Samples that were run."""
    outputs: tuple[OutputDifference, ...]
    """Each tensor of the outputs, compared."""
    metrics: tuple[MetricDifference, ...]
    """Each metric that was asked for, compared."""

    @property
    def is_proven(self) -> bool:
        """Whether all of it is as near as it has to be."""
        outputs_close = all(item.is_close for item in self.outputs)
        return outputs_close and all(item.is_close for item in self.metrics)

    def __str__(self) -> str:
        parts = []
        if self.outputs:
            largest = max(item.largest_relative for item in self.outputs)
            parts.append(
                f"{counted(self.num_samples, 'sample')} run again, outputs differ by at most "
                f"{largest:.2g} of their largest value"
            )
        parts += [
            f"{item.name} {item.found:.6g}, stored {item.expected:.6g}" for item in self.metrics
        ]
        return f"{self.path}: {'; '.join(parts)}"


def replay(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    metric: Mapping[str, Metric] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    preprocess: Preprocess | None = None,
) -> Replay:
    """Run a loaded model on the samples that its file carries, and compare the outputs.

    The file was saved with `save(model, path, samples=...)`. The model runs in evaluation mode,
    without gradients and autocast, on its own device and in its own dtype; its modes are put back.
    This shows what no tensor does: layers of one shape swapped, another preprocessing, another
    activation or eps.

    Args:
        model: the model, loaded.
        path: the file.
        metric: a function for each metric to be evaluated, by the name that it was stored under
            with `save(..., metric={"accuracy": 0.973})`.
        rtol: the difference of an output that is allowed, in relation to the largest absolute value
            of the tensor; of a metric, in relation to its value. By default 2e-5 for float32 on the
            processor, 1e-12 for float64, 1e-2 for float16 and for float32 where another kind of
            device takes part, 5e-2 for bfloat16; of a metric 1e-3. Integers must be the same.
        atol: what is allowed besides; by default 1e-8.
        preprocess: makes of the stored inputs what the model takes. Give it exactly if it was given
            to `save`.

    Raises:
        FileProblem: the file is missing, damaged, or of no readable kind.
        WrongArgument: the file carries neither samples nor the metric, or `preprocess` is missing
            or not needed.
        ProofFailed: an output or a metric differs; the message says by how much, and why that
            happens. The error's `replay` has all of it.
    """
    metadata = describe(path).metadata
    return replay_stored(
        model, metadata, path, metric=metric, rtol=rtol, atol=atol, preprocess=preprocess
    )


def why_not_replayed(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> str:
    """Return why a file's samples may not be run without being asked for; empty if they may.

    They must be what the model takes as it is, and tensors alone: a stranger's text or number is
    not handed to somebody's code by itself.

    Args:
        metadata: that of a file that carries samples.
        path: the file, for messages.

    Raises:
        DamagedFile: they can't be read.
    """
    try:
        stored = decode_samples(metadata[SAMPLES])
    except FileProblem as problem:
        raise problem.in_file(path) from None
    if stored.preprocess:
        return "they are raw inputs: torchkeep.replay(model, path, preprocess=...) runs them"
    if not all(map(_has_tensors_alone, stored.samples)):
        return "they hold more than tensors: torchkeep.replay(model, path) runs them"
    return ""


def _has_tensors_alone(sample: Sample) -> bool:
    values = [*sample.args, *sample.kwargs.values()]
    return all(isinstance(value, SampleTensor | bool | None) for value in values)


def replay_stored(
    model: torch.nn.Module,
    metadata: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    metric: Mapping[str, Metric] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    preprocess: Preprocess | None = None,
) -> Replay:
    """Do what `replay` does, for a file whose metadata was read already; `path` is for messages."""
    try:
        stored = decode_samples(metadata[SAMPLES]) if SAMPLES in metadata else None
        figures = _stored_figures(metadata) if metric else {}
    except FileProblem as problem:
        raise problem.in_file(path) from None
    _check_arguments(path, stored, preprocess, figures, metric or {})
    differences: list[OutputDifference] = []
    if stored is not None:
        atol_used = ATOL if atol is None else atol
        replayed = _Replayed(model, stored, rtol, atol_used, preprocess)
        for number, sample in enumerate(stored.samples, 1):
            differences += replayed.differences(sample, number, path)
    done = Replay(
        Path(path),
        len(stored.samples) if stored else 0,
        tuple(differences),
        tuple(_compared(model, figures, metric or {}, rtol, atol)),
    )
    if not done.is_proven:
        raise _failure(done)
    return done


def _stored_figures(metadata: Mapping[str, str]) -> dict[str, float]:
    table = json_or_text(metadata.get(METRIC, "{}"))
    if not isinstance(table, dict):
        raise DamagedFile("its metadata 'metric' is no table of numbers")
    return {name: value for name, value in table.items() if type(value) in (int, float)}


def _check_arguments(
    path: str | os.PathLike[str],
    stored: Samples | None,
    preprocess: Preprocess | None,
    figures: Mapping[str, float],
    metric: Mapping[str, Metric],
) -> None:
    where = os.fspath(path)
    if stored is None and not metric:
        raise WrongArgument(
            f"{where}: it carries no samples",
            advice="Save it with samples=..., or pass metric={name: function}.",
        )
    for name in metric:
        if name not in figures:
            found = ", ".join(figures) or "none"
            raise WrongArgument(
                f"{where}: no metric {name!r} is stored (there are: {found})",
                advice=f"Save it with metric={{{name!r}: ...}}.",
            )
    if stored is not None and stored.preprocess and preprocess is None:
        raise WrongArgument(
            f"{where}: its samples are raw inputs, which went through {stored.preprocess}",
            advice="Pass your preprocess=... as well.",
        )
    if preprocess is not None and not (stored is not None and stored.preprocess):
        raise WrongArgument(
            f"{where}: it has no raw inputs for preprocess",
            advice="Leave preprocess out, or save with samples=raw, preprocess=....",
        )


class _Replayed:
    """A model, and how its outputs are to be compared."""

    def __init__(
        self,
        model: torch.nn.Module,
        stored: Samples,
        rtol: float | None,
        atol: float,
        preprocess: Preprocess | None,
    ) -> None:
        self.model = model
        self.rtol, self.atol = rtol, atol
        self.preprocess = preprocess
        self.stored_dtype = torch_dtype(stored.dtype)
        device, self.dtype = place_of(model)
        self.cast_from = None if self.dtype == self.stored_dtype else self.stored_dtype
        self.on_cpu = device.type == stored.device == "cpu"

    def differences(
        self, sample: Sample, number: int, path: str | os.PathLike[str]
    ) -> list[OutputDifference]:
        """Run one sample, and compare each tensor that was stored of its output."""
        args, kwargs = live(sample.args), live(sample.kwargs)
        try:
            with generators_kept(self.model):
                found = run(
                    self.model, args, kwargs, preprocess=self.preprocess, cast_from=self.cast_from
                )
        except Exception as error:  # the model is the caller's, and may raise anything
            raise ProofFailed(
                f"{os.fspath(path)}: the model can't be run on stored sample {number} "
                f"({type(error).__name__}: {error})",
                advice="Is it the model that was saved, on one device, and is preprocess the same?",
            ) from error
        return [
            self._difference(number, name, live_tensor(tensor), found.get(name))
            for name, tensor in sample.outputs.items()
        ]

    def _difference(
        self, number: int, name: str, expected: torch.Tensor, found: torch.Tensor | None
    ) -> OutputDifference:
        dtypes = {self.dtype, self.stored_dtype, expected.dtype}
        dtypes |= set() if found is None else {found.dtype}
        rtol = default_rtol(*dtypes, on_cpu=self.on_cpu) if self.rtol is None else self.rtol
        return difference(number, name, expected, found, rtol=rtol, atol=self.atol)


def _compared(
    model: torch.nn.Module,
    figures: Mapping[str, float],
    metric: Mapping[str, Metric],
    rtol: float | None,
    atol: float | None,
) -> Iterator[MetricDifference]:
    for name, evaluate in metric.items():
        with evaluating(model):
            expected, found = figures[name], float(evaluate(model))
        allowed = (METRIC_RTOL if rtol is None else rtol) * abs(expected)
        allowed += ATOL if atol is None else atol
        yield MetricDifference(name, expected, found, allowed)


# --- What differs, and why ---------------------------------------------------------------------


def _failure(done: Replay) -> ProofFailed:
    outputs = [item for item in done.outputs if not item.is_close]
    metrics = [item for item in done.metrics if not item.is_close]
    said = [*map(_sentence, outputs[:_MAX_SHOWN])]
    if len(outputs) > _MAX_SHOWN:
        said.append(f"and {len(outputs) - _MAX_SHOWN:,} more")
    said += [
        f"{item.name} is {item.found:.6g}, and {item.expected:.6g} was stored" for item in metrics
    ]
    problem = f"{done.path}: the model does not do what it did when it was saved: {'; '.join(said)}"
    return ProofFailed(problem, advice=_causes(outputs), replay=done)


def _sentence(item: OutputDifference) -> str:
    name = f"output {item.name!r}" if item.name else "the output"
    text = f"{name} of sample {item.sample}"
    if not item.found:
        return f"{text} ({item.expected}) is missing"
    if item.expected.partition(" ")[2] != item.found.partition(" ")[2]:
        return f"{text} is {item.found} instead of {item.expected}"
    text += (
        f" ({item.expected}) differs by up to {item.largest_absolute:.2g}, {item.allowed:.2g} "
        f"is allowed ({item.largest_relative:.2g} of its largest value)"
    )
    if item.argmax_agreement is not None:
        text += f", {item.argmax_agreement:.0%} of the predictions agree"
    return text


_SMALL = 0.02
"""Another eps or precision stays below this share of the largest value, as a rule."""


def _causes(outputs: list[OutputDifference]) -> str:
    """Return what usually causes differences of this size."""
    if not outputs:
        return "Usual causes: other data or another preprocessing, or other weights."
    largest = max(item.largest_relative for item in outputs)
    if not math.isfinite(largest):
        return "Usual causes: another head or number of classes, or another model."
    if largest < _SMALL:
        return (
            "Usual causes of a small difference: another eps, another form of the activation, "
            "another precision or kind of device, or a preprocessing that is a little different; "
            "rtol=... allows more."
        )
    return (
        "Usual causes: layers of one shape swapped, another preprocessing (size, mean, channel "
        "order), dropout or training mode within the forward, another activation, or weights that "
        "were not loaded."
    )
