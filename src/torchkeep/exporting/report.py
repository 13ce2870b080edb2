"""What is told of an export: plain data, and the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchkeep.exporting.proof.parity import Comparison, Tolerance
from torchkeep.exporting.proof.timing import Timing

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One file of an export."""

    name: str
    """Its name within its folder."""
    nbytes: int
    """Its size in bytes."""
    digest: str
    """Its XXH3-128 digest, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the original and the file are, measured in turns."""

    original: Timing
    """Of the original in PyTorch, float32, as it is called in evaluation."""
    exported: Timing
    """Of the file, in its runtime."""

    @property
    def ratio(self) -> float:
        """How many times as fast the file is, by the medians."""
        return self.original.median_s / self.exported.median_s


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good both are on validation data."""

    num_samples: int
    """Samples in all."""
    original: int
    """Samples that the original has right."""
    exported: int
    """Samples that the file has right."""

    @property
    def drop(self) -> float:
        """What is lost, as a share; negative if the file is better."""
        return (self.original - self.exported) / self.num_samples


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported, and how it was proven."""

    path: Path
    """The file."""
    target: str
    """The target's name."""
    options: Mapping[str, Any]
    """The target's options."""
    source: str
    """Where the network comes from."""
    example: str
    """What it was proven with."""
    is_real: bool
    """Whether these were real inputs."""
    files: tuple[WrittenFile, ...]
    """The file, and what belongs to it."""
    original_nbytes: int
    """Bytes of the original's parameters and buffers."""
    inputs: tuple[tuple[str, str, tuple[int | str, ...]], ...]
    """Name, dtype and shape of each input; dimensions that may vary by their names."""
    tolerance: Tolerance
    """How far the file was allowed to be."""
    comparisons: tuple[Comparison, ...]
    """Each output of each case."""
    notes: tuple[str, ...]
    """What whoever ships the file should know: what was guessed, what the file does not say."""
    images_prepared: int
    """Images that the file's own recipe made the same of as the original's; 0 if it has none."""
    speeds: tuple[Speed, ...]
    """By batch size."""
    accuracy: Accuracy | None
    """On validation data, if there were any."""
    versions: Mapping[str, str]
    """Versions of what took part."""
    seconds: float
    """How long it took."""

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def worst(self) -> Comparison:
        """The output that differs most."""
        return max(self.comparisons, key=lambda each: each.relative)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        found = asdict(self)
        found["path"] = self.path.name
        found["schema"] = SCHEMA
        for row, comparison in zip(found["comparisons"], self.comparisons, strict=True):
            row["relative"] = comparison.relative
        for row, speed in zip(found["speeds"], self.speeds, strict=True):
            row["ratio"] = speed.ratio
        made: dict[str, Any] = _finite(found)
        return made


def _finite(value: Any) -> Any:
    """Return a value without infinities, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
