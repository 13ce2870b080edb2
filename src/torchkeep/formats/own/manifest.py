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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import InputFile, digest
from torchkeep.formats.own.structure import inert
from torchkeep.formats.plain_json import parse_json
from torchkeep.pickles.limits import Limits

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
FORMAT = "torchkeep checkpoint"
FORMAT_VERSION = 1

CHECKPOINT_NAME = re.compile(r"step-(\d{8,})(?:-\d+)?")
"""The names of the checkpoints in a run's folder; the number is that of the finished steps."""

_MODEL_PREFIX = "objects/model/state/state_dict/"
"""Tensors with names like this are the model's state dict, and go into a file of their own."""


def folder_name(step: int, revision: int = 1) -> str:
    """Return the name of a checkpoint's folder, one that `CHECKPOINT_NAME` matches.

    >>> folder_name(1200), folder_name(1200, 2)
    ('step-00001200', 'step-00001200-2')
    """
    name = f"step-{step:08d}"
    return name if revision == 1 else f"{name}-{revision}"


def place_of(name: str) -> tuple[str, str]:
    """Return the file that holds a tensor of the structure, and the tensor's name in it.

    >>> place_of("rng/torch"), place_of("objects/model/state/state_dict/fc.bias")
    (('state.safetensors', 'rng/torch'), ('model.safetensors', 'fc.bias'))
    """
    if name.startswith(_MODEL_PREFIX):
        return MODEL_FILE, name.removeprefix(_MODEL_PREFIX)
    return STATE_FILE, name


def name_of(file: str, key: str) -> str:
    """Return the name that a tensor of a file has in the structure: what `place_of` undoes."""
    return f"{_MODEL_PREFIX}{key}" if file == MODEL_FILE else key


class StoredTensor(NamedTuple):
    """A tensor of which a manifest says where it is."""

    name: str
    """Its name in the structure."""
    file: str
    """The file that holds it."""
    key: str
    """The name under which it is stored there: its own, or that of one that it is tied to."""
    digest: str
    """The digest of its bytes."""


def stored_tensors(manifest: Mapping[str, Any]) -> Iterator[StoredTensor]:
    """Yield where the tensors of a checkpoint are, file by file."""
    for file, digests in manifest["tensors"].items():
        tied = manifest["tied"][file]
        for key, expected in digests.items():
            yield StoredTensor(name_of(file, key), file, tied.get(key, key), expected)


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
            manifest = parse_json(file.read_at(0, file.nbytes))
            _check_manifest(manifest)
        except (
            RecursionError
        ):  # for its digest it is written again, which takes more of Python's stack
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
        if problem := size_problem(name, nbytes, expected):
            return problem
    return ""


def size_problem(name: str, nbytes: int, expected: Mapping[str, Any]) -> str:
    """Return what is wrong with the size of a file of the manifest; empty if nothing is."""
    wanted = expected["nbytes"]
    return "" if nbytes == wanted else f"{name} has {nbytes} bytes instead of {wanted}"
