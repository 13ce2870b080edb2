"""A training run as `torchkeep.report` tells it."""

from __future__ import annotations

import io
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from torchkeep.checkpointing.doctor.environment import git_revision, versions
from torchkeep.report import Best, Confusion, Facts, LayerRow, Mistake, RunReport
from torchkeep.report import Finding as Noticed
from torchkeep.report.data import Severity
from torchkeep.training.data import (
    Data,
    ImageFolder,
    Preprocessing,
    Relabelled,
    Transformed,
    labels_of,
)
from torchkeep.training.data.samples import Labelled
from torchkeep.training.records.history import METRIC, with_times
from torchkeep.training.surgery import layer_table
from torchkeep.wording import counted

if TYPE_CHECKING:
    from torchkeep.training.diagnosis import Finding
    from torchkeep.training.preparing import Prepared
    from torchkeep.training.retraining import Result

_SEVERITIES: dict[str, Severity] = {"error": "problem", "warning": "warning", "note": "note"}
_MAX_MISTAKES = 24
_MAX_SIDE = 160
"""How large a picture is in the report, in pixels."""


def report_of(prepared: Prepared, result: Result, findings: Sequence[Finding] = ()) -> RunReport:
    """Return what there is to tell of a run: how it went, how good it is, what it gets wrong."""
    card, data, answers = prepared.card, prepared.data, result.answers
    row = result.history[result.best_epoch]
    return RunReport(
        title=f"{_short(card.arch)} on {Path(data.source).name or data.source}",
        best=Best(METRIC, row[METRIC], result.best_epoch + 1),
        facts=_facts(prepared, result.seconds),
        history=[_epoch(row) for row in with_times(result.history, result.times)],
        confusion=Confusion(card.classes, answers.confusion(len(card.classes))),
        mistakes=[_mistake(prepared, result, at) for at in answers.worst(_MAX_MISTAKES)],
        layers=list(_layers(prepared)),
        findings=[Noticed(_SEVERITIES[x.severity], x.text, x.advice) for x in findings],
    )


def _epoch(row: Mapping[str, float]) -> dict[str, float]:
    """Return what a person wants to see of an epoch, counted from 1."""
    return {name: x for name, x in row.items() if name != "step"} | {"epoch": row["epoch"] + 1}


def _short(arch: str) -> str:
    return arch.rpartition("/")[2]


def device_name(device: torch.device) -> str:
    """Return a device with the name of what it is: `cuda:0 (NVIDIA H100)`, `cpu (x86_64)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = counted(torch.get_num_threads(), "thread")
    return f"{device} ({platform.processor() or platform.machine()}, {threads})"


def _facts(prepared: Prepared, seconds: float) -> Facts:
    data, classes = prepared.data, prepared.card.classes
    counts = {
        part: {name: number[label] for label, name in enumerate(classes)}
        for part, number in (
            ("train", Counter(labels_of(data.train))),
            ("val", Counter(labels_of(data.val))),
        )
    }
    settings = prepared.settings.to_json()
    return Facts(
        architecture=_short(prepared.card.arch),
        weights=prepared.start.weights,
        data_folder=data.source,
        counts=counts,
        preprocessing=_steps(prepared.card.preprocessing, prepared.settings.augment),
        settings={
            name: value for name, value in settings.items() if value not in (None, False, {})
        },
        versions={name: str(value) for name, value in versions().items()},
        device=device_name(prepared.device),
        duration_s=seconds or None,
        git_revision=str(git_revision() or ""),
    )


def _steps(recipe: Preprocessing, augment: str) -> list[str]:
    if recipe.num_channels not in (1, 3):
        return [f"tensors of {recipe.num_channels} channels, as the data set gives them"]
    size = f"{recipe.width} x {recipe.height}"
    steps = ["turned upright, in colours" if recipe.num_channels == 3 else "made grey"]
    if recipe.resize is None:
        steps.append(f"scaled to {size} ({recipe.interpolation})")
    else:
        steps.append(f"scaled to a shorter side of {recipe.resize} ({recipe.interpolation})")
        steps.append(f"the middle {size} cut out")
    means, stds = (", ".join(f"{x:g}" for x in row) for row in (recipe.mean, recipe.std))
    steps.append(f"normalised by means of {means} and standard deviations of {stds}")
    return [*steps, f"in training also changed at random: {augment}"]


def _layers(prepared: Prepared) -> Iterable[LayerRow]:
    for row in layer_table(prepared.start.model, prepared.optimizer):
        shape = row.sizes.get("weight", next(iter(row.sizes.values()), ()))
        rate = max(row.learning_rates, default=None)
        is_trained = row.trainable in ("yes", "partly")
        yield LayerRow(row.name, row.kind, shape, row.num_parameters, is_trained, rate)


def _mistake(prepared: Prepared, result: Result, at: int) -> Mistake:
    answers, classes = result.answers, prepared.card.classes
    picture, name = _sample(prepared.data, at)
    return Mistake(
        _as_png(picture),
        name,
        classes[int(answers.labels[at])],
        classes[int(answers.predicted[at])],
        float(answers.probability[at]),
        float(answers.loss[at]),
    )


def _sample(data: Data, at: int) -> tuple[Any, str]:
    """Return the picture of a validation sample as it was before its transform, and its name."""
    samples: Any = data.val
    while isinstance(samples, Transformed | Relabelled | Labelled):
        samples = samples.samples
    if not isinstance(samples, ImageFolder):
        return samples[at][0], f"sample {at}"
    path = samples.samples[at][0]
    is_below = path.is_relative_to(data.source)
    return samples[at][0], str(path.relative_to(data.source) if is_below else path)


def _as_png(picture: Any) -> bytes | None:
    if not isinstance(picture, Image.Image):
        return None
    small = picture.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()
