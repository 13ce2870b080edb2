"""Verdicts on many files: what a scanner of downloads needs.

It fails closed. What can't be read to its end, or is of no known kind, is `ambiguous`, and
`dangerous` if what it named before it broke is. In a folder, what is plainly no model (text,
pictures) is passed over, and said to be; a file under a model's suffix never is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileMissing, FileProblem, FileUnreadable, NotAModelFile
from torchkeep.files import InputFile
from torchkeep.formats import examine_open
from torchkeep.formats.containers import CONTAINERS
from torchkeep.identify.json_form import SCHEMA, finding_form
from torchkeep.identify.safety import Safety, Verdict, judge
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

MODEL_SUFFIXES: frozenset[str] = frozenset(
    ".7z .bin .bz2 .ckpt .dat .dill .distcp .ggml .gguf .gz .h5 .hdf5 .jit .job .joblib .keras "
    ".mar .metadata .mlmodel .model .msgpack .nemo .npy .npz .onnx .params .pb .pdiparams .pdmodel "
    ".pdopt .pdparams .pickle .pkl .pmml .pt .pt2 .pte .pth .ptl .ptrom .rds .safetensors .skops "
    ".sav .t7 .tar .tflite .tgz .torch .weights .xz .zip".split()
)
"""Suffixes under which people keep models; such a file is never passed over."""

_VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})
"""Folders that hold a program's own data, and copies of what lies beside them."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """The verdict on one file."""

    path: str
    """The file, as it was asked for or found."""
    container: str
    """The kind of file; empty if it could not even be opened."""
    verdict: Verdict
    """What loading it could do."""
    findings: tuple[Finding, ...]
    """The reasons, the worst first; empty for `data-only`."""
    problem: str
    """Why it could not be read as a model; empty if it could."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md)."""
        return {
            "schema": SCHEMA,
            "path": self.path,
            "container": self.container,
            "verdict": self.verdict,
            "findings": [finding_form(item) for item in self.findings],
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a folder that is plainly no model."""

    path: str
    """The file or the folder."""
    reason: str
    """What it is."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md)."""
        return {"schema": SCHEMA, "path": self.path, "verdict": None, "skipped": self.reason}


@dataclass(frozen=True, slots=True)
class Missing:
    """A path that was named, and where nothing is."""

    path: str
    """The path."""
    problem: FileMissing
    """The error that says so."""

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form (docs/cli.md)."""
        text = self.problem.problem
        return {"schema": SCHEMA, "path": self.path, "verdict": None, "problem": text}


def scan(*paths: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS) -> tuple[Scanned, ...]:
    """Return the verdicts on files, on all files in folders, and in archives.

    Nothing in them is run or imported, and nothing is raised because of what they hold: what is
    there and can't be read is `ambiguous`.

    Args:
        paths: files and folders. A file that is named is always judged; in a folder, what is
            plainly no model is passed over (`scan_each` tells what that was).
        limits: bounds of the work that one file may cause.

    Raises:
        FileMissing: there is nothing at one of the paths.
    """
    found = []
    for item in scan_each(*paths, limits=limits):
        if isinstance(item, Missing):
            raise item.problem
        if isinstance(item, Scanned):
            found.append(item)
    return tuple(found)


def scan_each(
    *paths: str | os.PathLike[str], limits: Limits = DEFAULT_LIMITS
) -> Iterator[Scanned | Skipped | Missing]:
    """Yield what `scan` returns, one by one, what is passed over, and which paths are missing."""
    for path in map(Path, paths):
        if _is_folder(path):
            yield from _scan_folder(path, limits)
        else:
            yield _scan_file(path, limits)


# --- Folders -------------------------------------------------------------------------------------


def _scan_folder(top: Path, limits: Limits) -> Iterator[Scanned | Skipped]:
    """Yield what is in a folder and below it, in order. Links to folders are not followed."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            problem = f"the folder can't be listed ({error.strerror})"
            yield _unopened(folder, FileUnreadable(problem))
            continue
        below = []
        for entry in found:
            path = folder / entry.name
            if not _is_folder(path):
                yield _scan_found(path, limits)
            elif entry.is_symlink():
                yield Skipped(str(path), "a link to a folder")
            elif entry.name in _VERSION_CONTROL:
                yield Skipped(str(path), "a folder of a version control system")
            else:
                below.append(path)
        waiting += reversed(below)


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):  # what is there is said when it is opened
        return False


def _scan_found(path: Path, limits: Limits) -> Scanned | Skipped:
    """Return the verdict on a file that nobody named, or why it has none."""
    try:
        contents = _examine(path, limits)
    except FileProblem as problem:
        return _unopened(path, problem)
    safety = judge(contents, limits, is_part=True)
    if _is_no_model(contents, safety) and not _has_models_suffix(path):
        return Skipped(str(path), _what(contents))
    return _scanned(path, contents, judge(contents, limits))


def _is_no_model(contents: Contents, safety: Safety) -> bool:
    """Whether a file is plainly something else, and harmless as far as a model's user goes."""
    if CONTAINERS[contents.container].use == "none":
        # Settings name what to call; that is worth a word only if it is a shell.
        is_code = any(item.rule != "target" for item in safety.findings)
        return safety.verdict in ("data-only", "needs-trust") and not is_code
    is_known = contents.container == "unknown" and contents.kind not in _NO_KIND
    is_bare = not contents.globals and not contents.findings
    return is_known and is_bare and isinstance(contents.problem, NotAModelFile)


_NO_KIND = frozenset({"", "file of no known kind", "file of zeros"})
"""What the reader of unknown files says of those that may have been a model."""


def _what(contents: Contents) -> str:
    return contents.kind or contents.container


def _has_models_suffix(path: Path) -> bool:
    return path.suffix.casefold() in MODEL_SUFFIXES or path.name.casefold() in MODEL_SUFFIXES


# --- Files ---------------------------------------------------------------------------------------


def _scan_file(path: Path, limits: Limits) -> Scanned | Missing:
    """Return the verdict on a file that was named, if there is one."""
    try:
        contents = _examine(path, limits)
    except FileMissing as problem:
        problem.in_file(path)
        return Missing(str(path), problem)
    except FileProblem as problem:
        return _unopened(path, problem)
    return _scanned(path, contents, judge(contents, limits))


def _examine(path: Path, limits: Limits) -> Contents:
    """Return what one file holds, without a look at its neighbours: they are scanned themselves."""
    with InputFile(path) as file:
        return examine_open(file, limits)


def _scanned(path: Path, contents: Contents, safety: Safety) -> Scanned:
    problem = contents.problem.problem if contents.problem is not None else ""
    return Scanned(str(path), contents.container, safety.verdict, safety.findings, problem)


def _unopened(path: Path, problem: FileProblem) -> Scanned:
    rule = "missing" if isinstance(problem, FileMissing) else "unreadable"
    finding = Finding(rule, "ambiguous", "", problem.problem)
    return Scanned(str(path), "", "ambiguous", (finding,), problem.problem)


__all__ = ["MODEL_SUFFIXES", "Missing", "Scanned", "Skipped", "scan", "scan_each"]
