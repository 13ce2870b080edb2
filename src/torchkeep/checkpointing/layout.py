"""A checkpoint on disk: what `formats.own.manifest` lays out, written and read back live.

The folder is written aside and renamed, so it is there whole or not at all. What can go wrong
after that (a bad disk, an unlucky copy) shows in the digests: one per file, one per tensor, and
one of the manifest itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.encoding import JSON, State, decode, encode
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
    digest_of_pieces,
    write_file,
)
from torchkeep.formats import describe
from torchkeep.formats.own.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MODEL_FILE,
    STATE_FILE,
    StoredTensor,
    manifest_digest,
    place_of,
    read_manifest,
    size_problem,
    stored_tensors,
)
from torchkeep.formats.own.metadata import TRAINING_STATE
from torchkeep.saving.safetensors import write_safetensors
from torchkeep.tensors import TensorReader, bytes_of

__all__ = ["MANIFEST", "MODEL_FILE", "damage", "read_manifest", "read_state", "write_checkpoint"]


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
    return write_encoded(folder, *encode(state), facts=facts, durable=durable)


def write_encoded(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    structure: JSON,
    *,
    facts: Mapping[str, Any],
    durable: bool = True,
) -> dict[str, Any]:
    """Write a state that `encode` took apart. The other arguments are `write_checkpoint`'s."""
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
        manifest["digest"] = manifest_digest(manifest)
        text = json.dumps(manifest, indent=1, allow_nan=False)
        write_file(temporary / MANIFEST, text.encode(), durable=durable)
    return manifest


def _by_file(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        file, key = place_of(name)
        files.setdefault(file, {})[key] = tensor
    return files


def _file_facts(path: Path) -> dict[str, Any]:
    with InputFile(path) as file:
        return {"nbytes": file.nbytes, "digest": _digest_of(file, 0, file.nbytes)}


def _digest_of(file: InputFile, offset: int, nbytes: int) -> str:
    end = offset + nbytes
    return digest_of_pieces(
        file.read_at(start, min(CHUNK_NBYTES, end - start))
        for start in range(offset, end, CHUNK_NBYTES)
    )


# --- Reading -----------------------------------------------------------------------------------


def damage(folder: str | os.PathLike[str]) -> str:
    """Return what is wrong with a checkpoint, or an empty string: every byte of it is read."""
    try:
        manifest = read_manifest(folder)
        for name, expected in manifest["files"].items():
            found = _file_facts(Path(folder) / name)
            if problem := size_problem(name, found["nbytes"], expected):
                return problem
            if found["digest"] != expected["digest"]:
                return f"{name} differs from what was written"
        # A file's digest is that of what was read back; a tensor's is that of what was in memory.
        for name, stored in _by_stored_file(manifest):
            if key := _wrong_tensor(Path(folder) / name, stored):
                return f"{name}: tensor {key} differs from what was written"
    except FileMissing as error:
        return f"{Path(error.path or '').name} is missing"
    except FileProblem as error:
        return f"{Path(error.path or '').name}: {error.problem}"
    return ""


def _wrong_tensor(path: Path, wanted: Iterable[StoredTensor]) -> str:
    """Return the key of a tensor that is not what it was in memory; empty if there is none."""
    entries = describe(path).root
    with InputFile(path) as file:
        for _, _, key, expected in wanted:
            storage = entries[key].storage if key in entries else None
            if storage is None or _digest_of(file, storage.offset, storage.nbytes) != expected:
                return key
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
    for file, stored in _by_stored_file(manifest):
        tensors |= _read_tensors(Path(folder) / file, stored, mmap=mmap)
    try:
        state: State = decode(tensors, manifest["structure"])
    except RecursionError:
        path = Path(folder) / MANIFEST
        raise DamagedFile("its structure is nested too deeply", path=path) from None
    return state


def _by_stored_file(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Iterator[StoredTensor]]]:
    return groupby(stored_tensors(manifest), lambda item: item.file)


def _read_tensors(
    path: Path, wanted: Iterable[StoredTensor], *, mmap: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        entries = describe(path).root
    except (NotAModelFile, UnsupportedContent) as error:  # it was one when it was written
        raise DamagedFile(error.problem, path=path) from None
    with TensorReader(path, mmap=mmap) as reader:
        for name, _, key, expected in wanted:
            if key not in entries:
                raise DamagedFile(f"tensor {key} is missing", path=path)
            tensor = reader.materialize(entries[key], key)
            if digest(bytes_of(tensor)) != expected:
                raise DamagedFile(f"tensor {key} differs from what was written", path=path)
            yield name, tensor
