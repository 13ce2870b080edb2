"""What is told of an export: plain data, the same as JSON, and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchkeep.exporting.proof.parity import Comparison, Tolerance
from torchkeep.exporting.proof.timing import Timing
from torchkeep.showing import table
from torchkeep.wording import counted, printable, shortened, size

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
    """What was exported, and how it was proven. Print it to read it."""

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

    def __str__(self) -> str:
        return "\n".join([*headlines(self), *tables(self)])

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


# --- In words ----------------------------------------------------------------------------------


def headlines(report: Exported) -> Iterator[str]:
    """Yield what was made of what, and with what it was proven: lines of any length."""
    precision = report.options.get("precision", "float32")
    made = f"{report.target}, {precision}, of {report.source}"
    yield printable(f"{report.path}: proven to do what the original does ({made})")
    with_what = report.example if report.is_real else f"{report.example}: give --example or --data"
    yield f"  with {printable(with_what)}"
    for name, dtype, shape in report.inputs:
        yield printable(f"  takes {name}, {dtype} [{', '.join(map(str, shape))}]")
    if report.images_prepared:
        images = counted(report.images_prepared, "image")
        yield f"  its own recipe prepares {images} as the original's does"
    yield from (f"  {printable(note)}" for note in report.notes)
    if any(each.is_as_exact for each in report.comparisons):
        yield "  differs by more than is usual, and is as near to float64 as the original is"
    if len(report.files) > 1:
        names = ", ".join(shortened(file.name) for file in report.files)
        yield f"  {names} belong together: keep them in one folder"


def tables(report: Exported) -> Iterator[str]:
    """Yield how the outputs differ, and both sides beside each other: lines that are aligned."""
    yield ""
    yield from table(list(_cases(report)), right=(1, 2, 3, 4))
    yield ""
    yield from table(list(_sides(report)), right=(1, 2))


def _cases(report: Exported) -> Iterator[tuple[str, ...]]:
    yield "outputs", "differ by", "on average", "cosine", "same class"
    for each in report.comparisons:
        name = each.case if each.output == "output" else f"{each.case}, {each.output}"
        share = "" if each.agreement is None else f"{each.agreement:.1%}"
        largest = f"{each.relative:.1e}"
        mean = f"{each.mean / each.scale if each.scale else each.mean:.1e}"
        yield name, largest, mean, f"{each.cosine:.6f}", share


def _sides(report: Exported) -> Iterator[tuple[str, ...]]:
    yield "", "original", "file", ""
    ratio = report.original_nbytes / max(report.nbytes, 1)
    smaller = f"{ratio:.2f} times smaller" if ratio >= 1.05 else ""
    yield "size", size(report.original_nbytes), size(report.nbytes), smaller
    if report.accuracy is not None:
        found = report.accuracy
        shares = [f"{count / found.num_samples:.2%}" for count in (found.original, found.exported)]
        yield "accuracy", *shares, f"of {counted(found.num_samples, 'image')}"
    for speed in report.speeds:
        one, two = speed.original, speed.exported
        what = f"batch {one.batch_size}"
        is_alike = 0.9 <= speed.ratio <= 1.1  # less than what two runs differ by
        faster = "about as fast" if is_alike else f"{speed.ratio:.1f} times as fast"
        yield f"{what}, median", _ms(one.median_s), _ms(two.median_s), faster
        yield f"{what}, 95% within", _ms(one.p95_s), _ms(two.p95_s), ""
        yield f"{what}, per second", f"{one.per_second:,.0f}", f"{two.per_second:,.0f}", ""


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
