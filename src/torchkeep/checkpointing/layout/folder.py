"""A checkpoint as a folder: what `formats.own.manifest` lays out, written and read back live.

The folder is written aside and renamed, so it is there whole or not at all. What can go wrong
after that (a bad disk, an unlucky copy) shows in the digests: of each tensor, of each file's
header, and of the manifest itself. They are of what is in memory: one of what a bad disk gives
back would fit its damage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.layout.history import Earlier
from torchkeep.checkpointing.layout.placement import by_file, laid_out
from torchkeep.checkpointing.layout.reading_back import Written, tensors_of
from torchkeep.checkpointing.state.encoding import State, decode
from torchkeep.errors import DamagedFile
from torchkeep.files import atomic_file, atomic_folder, digest, write_file
from torchkeep.formats.own.manifest import (
    FROZEN_MODEL_FILE,
    FROZEN_STATE_FILE,
    MANIFEST,
    MODEL_FILES,
    MODEL_INDEX,
    STATE_FILE,
    StoredTensor,
    manifest_digest,
    read_manifest,
    stored_tensors,
)
from torchkeep.formats.own.metadata import TRAINING_STATE
from torchkeep.saving.leaves import check_tensor
from torchkeep.tensors import TensorReader, bytes_of
from torchkeep.writing.shards import index_of
from torchkeep.writing.stream import Meter

Files = dict[str, dict[str, torch.Tensor]]
"""The tensors of each file, by their names in it."""


def write_folder(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    manifest: dict[str, Any],
    *,
    durable: bool,
    background: bool,
    before_naming: Callable[[], None],
    earlier: Earlier,
) -> Written:
    """Write a state that `encode` took apart as a folder.

    Args:
        folder: the checkpoint's name; nothing may be there.
        tensors: those of the state.
        manifest: the state's structure and the facts; what is written is added.
        durable: sync everything.
        background: take as little of the processors as can be, for somebody else computes.
        before_naming: is called when all is written; what it raises leaves nothing behind.
        earlier: the checkpoint before, to share files with.

    Raises:
        SaveRefused: a tensor can't be kept, or the place can't be written.
    """
    for name, tensor in tensors.items():
        check_tensor(tensor, name)
    put = partial(_put, manifest=manifest, earlier=earlier, durable=durable, background=background)
    runs: dict[str, Mapping[str, int]] = {}
    files = {
        file: {key: tensors[name] for key, name in content.items()}
        for file, content in by_file(tensors, manifest["structure"]).items()
    }
    with atomic_folder(folder, durable=durable) as temporary:
        for name, content in files.items():
            if found := put(temporary / name, content):
                runs[name] = found
        if FROZEN_MODEL_FILE in files:
            index = _index(files, manifest)
            write_file(temporary / MODEL_INDEX, index, durable=durable)
            manifest["files"][MODEL_INDEX] = {"nbytes": len(index), "digest": digest(index)}
        manifest["digest"] = manifest_digest(manifest)
        text = _lines(manifest).encode()
        write_file(temporary / MANIFEST, text, durable=durable)
        before_naming()
    return Written(Path(folder), manifest, digest(text), runs)


def _lines(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as JSON with a line for each field.

    `json` is eight times as fast at that as at an indented text, and the loop runs beside it.
    """
    fields = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in manifest.items()]
    return "{\n" + ",\n".join(fields) + "\n}"


def _put(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    manifest: dict[str, Any],
    earlier: Earlier,
    durable: bool,
    background: bool,
) -> Mapping[str, int] | None:
    """Write a file, or share it with the checkpoint before; tell the manifest what is in it.

    Returns:
        The bytes of its tensors in their order; None if it was shared.
    """
    name = path.name
    texts = TRAINING_STATE if name in (STATE_FILE, FROZEN_STATE_FILE) else None
    if earlier.share(name, tensors, texts, path, durable=durable):
        for field in ("files", "tensors", "tied"):
            manifest[field][name] = earlier.manifest[field][name]
        return None
    layout = laid_out(tensors, texts)
    with atomic_file(path, durable=durable, background=background) as file:
        digests = layout.write(file, Meter(None, layout.payload_nbytes))
    header = layout.header(digests)
    manifest["files"][name] = {"nbytes": layout.nbytes, "digest": digest(header)}
    manifest["tensors"][name] = digests
    manifest["tied"][name] = layout.tied
    return layout.runs


def _index(files: Files, manifest: Mapping[str, Any]) -> bytes:
    """Return the index of a model in two files."""
    shards = {name: content for name, content in files.items() if name in MODEL_FILES}
    tied = {key: kept for name in shards for key, kept in manifest["tied"][name].items()}
    where = {key: name for name, content in shards.items() for key in content}
    kept = {
        key: item for content in shards.values() for key, item in content.items() if key not in tied
    }
    return index_of(where, tied, sum(tensor.nbytes for tensor in kept.values()), {})


# --- Reading -----------------------------------------------------------------------------------


def read_folder(folder: str | os.PathLike[str], *, mmap: bool = False) -> State:
    """Return the state of a checkpoint, as `read_state` does."""
    manifest = read_manifest(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file, stored in groupby(stored_tensors(manifest), lambda item: item.file):
        tensors |= _read_tensors(Path(folder) / file, stored, mmap=mmap)
    try:
        state: State = decode(tensors, manifest["structure"])
    except RecursionError:
        path = Path(folder) / MANIFEST
        raise DamagedFile("its structure is nested too deeply", path=path) from None
    return state


def _read_tensors(
    path: Path, wanted: Iterable[StoredTensor], *, mmap: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    entries = tensors_of(path)
    with TensorReader(path, mmap=mmap) as reader:
        for name, _, key, expected in wanted:
            if key not in entries:
                raise DamagedFile(f"tensor {key} is missing", path=path)
            tensor = reader.materialize(entries[key], key)
            if digest(bytes_of(tensor)) != expected:
                raise DamagedFile(f"tensor {key} differs from what was written", path=path)
            yield name, tensor
