"""A checkpoint on disk.

    step-00001200/
      model.safetensors    the model's state dict, as anyone would save it
      state.safetensors    every other tensor of the state
      manifest.json        written last: what the state is made of, digests, facts for a person

The folder is written aside and renamed, so it is there whole or not at all. What can go wrong
after that (a bad disk, an unlucky copy) shows in the digests: one per file, one per tensor, and
one of the manifest itself.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from torchkeep.checkpointing.encoding import State, decode, encode
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    FileProblem,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.files import (
    CHUNK_NBYTES,
    InputFile,
    atomic_folder,
    digest,
    new_digest,
    write_file,
)
from torchkeep.formats import describe
from torchkeep.formats.own import TRAINING_STATE
from torchkeep.saving.safetensors import write_safetensors
from torchkeep.tensors import TensorReader, bytes_of

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
STATE_FILE = "state.safetensors"
FORMAT = "torchkeep checkpoint"
FORMAT_VERSION = 1

_MODEL_PREFIX = "objects/model/state/state_dict/"
"""Tensors with names like this are the model's state dict, and go into a file of their own."""


def write_checkpoint(
    folder: str | os.PathLike[str],
    state: State,
    *,
    facts: Mapping[str, Any],
    durable: bool = True,
) -> dict[str, Any]:
    """Write `state` as a checkpoint, and return its manifest.

    Args:
        folder: the checkpoint's name; nothing may be there.
        state: what `torchkeep.capture` returned.
        facts: plain values for the manifest's reader: step, epoch, metrics, date, ...
        durable: sync everything, so that a power loss can't undo it.

    Raises:
        SaveRefused: the state can't be kept, or the place can't be written.
    """
    tensors, structure = encode(state)
    _, plain_facts = encode(dict(facts), "metadata")
    manifest: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION, **plain_facts}
    manifest |= {"files": {}, "tensors": {}, "tied": {}, "structure": structure}
    with atomic_folder(folder, durable=durable) as temporary:
        for name, content in _by_file(tensors).items():
            texts = TRAINING_STATE if name == STATE_FILE else None
            report = write_safetensors(content, temporary / name, metadata=texts, durable=durable)
            manifest["files"][name] = _file_facts(temporary / name)
            manifest["tensors"][name] = report.digests
            manifest["tied"][name] = report.tied
        manifest["digest"] = _manifest_digest(manifest)
        text = json.dumps(manifest, indent=1, allow_nan=False)
        write_file(temporary / MANIFEST, text.encode(), durable=durable)
    return manifest


def _by_file(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        file, key = _place(name)
        files.setdefault(file, {})[key] = tensor
    return files


def _place(name: str) -> tuple[str, str]:
    """Return the file that holds the tensor, and the tensor's key in it."""
    if name.startswith(_MODEL_PREFIX):
        return MODEL_FILE, name.removeprefix(_MODEL_PREFIX)
    return STATE_FILE, name


def _file_facts(path: Path) -> dict[str, Any]:
    running = new_digest()
    with InputFile(path) as file:
        for start in range(0, file.nbytes, CHUNK_NBYTES):
            running.update(file.read_at(start, min(CHUNK_NBYTES, file.nbytes - start)))
        return {"nbytes": file.nbytes, "digest": running.hexdigest()}


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: item for key, item in manifest.items() if key != "digest"}
    return digest(json.dumps(rest, sort_keys=True).encode())


# --- Reading -----------------------------------------------------------------------------------


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        FileMissing: there is none.
        DamagedFile: it is not what was written.
    """
    path = Path(folder) / MANIFEST
    with InputFile(path) as file:
        data = file.read_at(0, file.nbytes)
    try:
        manifest = json.loads(data)
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
    if manifest.get("digest") != _manifest_digest(manifest):
        raise DamagedFile("its digest differs from what was written")
    wrong = [name for name, is_right in _FIELDS.items() if not is_right(manifest.get(name))]
    if wrong:
        raise DamagedFile(f"its {wrong[0]!r} is not what a checkpoint has there")
    decode({}, manifest["metrics"])  # raises if it can't be read
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


def damage(folder: str | os.PathLike[str]) -> str:
    """Return what is wrong with a checkpoint, or an empty string: every byte of it is read."""
    try:
        for name, expected in read_manifest(folder)["files"].items():
            found = _file_facts(Path(folder) / name)
            if found["nbytes"] != expected["nbytes"]:
                return f"{name} has {found['nbytes']} bytes instead of {expected['nbytes']}"
            if found["digest"] != expected["digest"]:
                return f"{name} differs from what was written"
    except FileMissing as error:
        return f"{Path(error.path or '').name} is missing"
    except FileProblem as error:
        return f"{Path(error.path or '').name}: {error.problem}"
    return ""


def read_state(folder: str | os.PathLike[str], *, mmap: bool = False) -> State:
    """Return the state of a checkpoint. Each tensor is compared with its digest.

    Args:
        folder: the checkpoint.
        mmap: map the files instead of reading them into memory.

    Raises:
        FileMissing: a file is missing.
        DamagedFile: something differs from what was written.
    """
    manifest = read_manifest(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file, digests in manifest["tensors"].items():
        prefix = _MODEL_PREFIX if file == MODEL_FILE else ""
        tied = manifest["tied"][file]
        for name, tensor in _read_tensors(Path(folder) / file, digests, tied, mmap=mmap):
            tensors[prefix + name] = tensor
    try:
        state: State = decode(tensors, manifest["structure"])
    except RecursionError:
        path = Path(folder) / MANIFEST
        raise DamagedFile("its structure is nested too deeply", path=path) from None
    return state


def _read_tensors(
    path: Path, digests: Mapping[str, str], tied: Mapping[str, str], *, mmap: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        entries = describe(path).root
    except (NotAModelFile, UnsupportedContent) as error:  # it was one when it was written
        raise DamagedFile(error.problem, path=path) from None
    with TensorReader(path, mmap=mmap) as reader:
        for name, expected in digests.items():
            stored = tied.get(name, name)
            if stored not in entries:
                raise DamagedFile(f"tensor {stored} is missing", path=path)
            tensor = reader.materialize(entries[stored], stored)
            if digest(bytes_of(tensor)) != expected:
                raise DamagedFile(f"tensor {stored} differs from what was written", path=path)
            yield name, tensor
