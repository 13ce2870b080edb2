"""The folder of a checkpoint of ours, and its manifest: what stands where, and what must be true.

    step-00001200/
      model.safetensors    the model's state dict, as anyone would save it
      state.safetensors    every other tensor of the state
      manifest.json        written last: what the state is made of, digests, facts for a person

Nothing of a manifest is used before it was checked: it is a file like any other.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import InputFile, digest
from torchkeep.formats.folders.own_structure import inert
from torchkeep.pickles.limits import Limits

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
FORMAT = "torchkeep checkpoint"
FORMAT_VERSION = 1

CHECKPOINT_NAME = re.compile(r"step-(\d{8,})(?:-\d+)?")
"""The names of the checkpoints in a run's folder; the number is that of the finished steps."""

MODEL_PREFIX = "objects/model/state/state_dict/"
"""Tensors with names like this are the model's state dict, and go into a file of their own."""


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of all that a manifest says but its digest."""
    rest = {key: item for key, item in manifest.items() if key != "digest"}
    return digest(json.dumps(rest, sort_keys=True).encode())


def read_manifest(
    folder: str | os.PathLike[str], *, limits: Limits | None = None
) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Args:
        folder: the checkpoint.
        limits: bounds of its length; None if the run is the caller's own.

    Raises:
        FileMissing: there is none.
        DamagedFile: it is not what was written.
        LimitReached: it is longer than `limits` allows.
    """
    path = Path(folder) / MANIFEST
    with InputFile(path) as file:
        try:
            if limits is not None:
                limits.check("header_nbytes", file.nbytes)
            manifest = json.loads(file.read_at(0, file.nbytes))
            _check_manifest(manifest)
        except ValueError as error:
            raise DamagedFile(f"it is not JSON ({error})", path=path) from None
        except RecursionError:
            raise DamagedFile("it is nested too deeply", path=path) from None
        except FileProblem as error:
            raise error.in_file(path) from None
    checked: dict[str, Any] = manifest
    return checked


def _check_manifest(manifest: object) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedFile("it is not the manifest of a checkpoint")
    if manifest.get("version") != FORMAT_VERSION:
        raise DamagedFile(
            f"it has version {reprlib.repr(manifest.get('version'))}, and this torchkeep reads "
            f"{FORMAT_VERSION}",
            advice="Use the torchkeep that wrote it, or a newer one.",
        )
    if manifest.get("digest") != manifest_digest(manifest):
        raise DamagedFile("its digest differs from what was written")
    wrong = [name for name, is_right in _FIELDS.items() if not is_right(manifest.get(name))]
    if wrong:
        raise DamagedFile(f"its {wrong[0]!r} is not what a checkpoint has there")
    inert(manifest["metrics"], {})  # raises if it can't be read
    if not manifest["files"].keys() == manifest["tensors"].keys() == manifest["tied"].keys():
        raise DamagedFile("its 'files', 'tensors' and 'tied' name different files")


def _is_table(value: object, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_right, value.values()))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _are_files(value: object) -> bool:
    """Tell whether it names our files, and no others: a manifest is no list of what to read."""

    def is_file(facts: Any) -> bool:
        return (
            isinstance(facts, dict)
            and _is_count(facts.get("nbytes"))
            and _is_text(facts.get("digest"))
        )

    return _is_table(value, is_file) and set(cast("dict[str, Any]", value)) <= _FILES


_FILES = frozenset({MODEL_FILE, STATE_FILE})

_FIELDS: dict[str, Callable[[Any], bool]] = {
    "files": _are_files,
    "tensors": lambda value: _is_table(value, lambda digests: _is_table(digests, _is_text)),
    "tied": lambda value: _is_table(value, lambda names: _is_table(names, _is_text)),
    "structure": lambda value: isinstance(value, dict),
    "serial": _is_count,
    "step": _is_count,
    "epoch": _is_count,
    "batch": _is_count,
    "metrics": lambda value: isinstance(value, dict),
    "date": _is_text,
    "inexact": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}
"""What is read from a manifest, and whether it is of the right kind."""


def wrong_size(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which file is missing or has another size than its manifest says; empty if none."""
    for name, expected in files.items():
        try:
            nbytes = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if nbytes != expected["nbytes"]:
            return f"{name} has {nbytes} bytes instead of {expected['nbytes']}"
    return ""
