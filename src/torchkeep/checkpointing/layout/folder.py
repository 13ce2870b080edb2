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

from torchkeep.checkpointing.layout.history import Earlier, has_digests
from torchkeep.checkpointing.layout.nodes import with_nodes
from torchkeep.checkpointing.layout.pieces import own_nodes, read_compared, sharded_tensors
from torchkeep.checkpointing.layout.placement import by_file, laid_out
from torchkeep.checkpointing.layout.reading_back import Written, entry_of, tensors_of
from torchkeep.checkpointing.ranks import Ranks
from torchkeep.checkpointing.state.encoding import State, decode
from torchkeep.errors import DamagedFile
from torchkeep.files import atomic_file, atomic_folder, digest, write_file
from torchkeep.formats.own.manifest import (
    FROZEN_MODEL_FILE,
    MANIFEST,
    MODEL_FILES,
    MODEL_INDEX,
    StoredTensor,
    manifest_digest,
    read_manifest,
    stored_tensors,
    texts_of,
)
from torchkeep.saving.leaves import check_tensor
from torchkeep.tensors import TensorReader
from torchkeep.writing.safetensors import Layout
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
            write_index(temporary, files, manifest, durable=durable)
        of_text = write_manifest(temporary, manifest, durable=durable)
        before_naming()
    return Written(Path(folder), manifest, of_text, runs)


def write_manifest(folder: Path, manifest: dict[str, Any], *, durable: bool) -> str:
    """Write a manifest with its digest, and return the digest of its text."""
    manifest["digest"] = manifest_digest(manifest)
    text = lines_of(manifest).encode()
    write_file(folder / MANIFEST, text, durable=durable)
    return digest(text)


def write_index(folder: Path, files: Files, manifest: dict[str, Any], *, durable: bool) -> None:
    """Write the index of a model in two files, and tell the manifest."""
    index = _index(files, manifest)
    write_file(folder / MODEL_INDEX, index, durable=durable)
    manifest["files"][MODEL_INDEX] = {"nbytes": len(index), "digest": digest(index)}


def lines_of(manifest: Mapping[str, Any]) -> str:
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
    layout = partial(laid_out, tensors, texts_of(name))
    if earlier.share(name, layout, partial(has_digests, tensors), path, durable=durable):
        for field in ("files", "tensors", "tied"):
            manifest[field][name] = earlier.manifest[field][name]
        return None
    new = layout()
    write_tensors(path, new, manifest, durable=durable, background=background)
    return new.runs


def write_tensors(
    path: Path,
    layout: Layout,
    manifest: Mapping[str, Any],
    *,
    durable: bool,
    background: bool = False,
) -> None:
    """Write a file of tensors, and tell the manifest what is in it."""
    with atomic_file(path, durable=durable, background=background) as file:
        digests = layout.write(file, Meter(None, layout.payload_nbytes))
    note_file(manifest, path.name, layout, digests)


def note_file(
    manifest: Mapping[str, Any], name: str, layout: Layout, digests: dict[str, str]
) -> None:
    """Tell a manifest of a file of tensors, by the digests of these."""
    header = layout.header(digests)
    manifest["files"][name] = {"nbytes": layout.nbytes, "digest": digest(header)}
    manifest["tensors"][name] = digests
    manifest["tied"][name] = layout.tied


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


def read_folder(folder: str | os.PathLike[str], ranks: Ranks, *, mmap: bool = False) -> State:
    """Return the state of a checkpoint, as `read_part` does."""
    manifest = read_manifest(folder)
    rank = ranks.rank if ranks.size == manifest.get("ranks", 1) else 0
    tensors: dict[str, Any] = {}
    pieces: list[StoredTensor] = []
    for file, stored in groupby(stored_tensors(manifest, rank), lambda item: item.file):
        whole: list[StoredTensor] = []
        for item in stored:
            (whole if item.offsets is None else pieces).append(item)
        if whole:
            tensors |= _read_tensors(Path(folder) / file, whole, mmap=mmap)
    tensors |= sharded_tensors(Path(folder), pieces)
    structure = manifest["structure"]
    if rank:
        structure = with_nodes(structure, own_nodes(Path(folder), manifest, rank))
    try:
        state: State = decode(tensors, structure)
    except RecursionError:
        path = Path(folder) / MANIFEST
        raise DamagedFile("its structure is nested too deeply", path=path) from None
    return state


def _read_tensors(
    path: Path, wanted: Iterable[StoredTensor], *, mmap: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    entries = tensors_of(path)
    with TensorReader(path, mmap=mmap) as reader:
        for name, _, key, expected, *_ in wanted:
            entry = entry_of(path, entries, key)
            yield name, read_compared(reader, entry, key, expected)
