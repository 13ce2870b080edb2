"""What the files of ranks hold: pieces of sharded tensors, and what each rank has for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchkeep.checkpointing.layout.nodes import tensors_in
from torchkeep.checkpointing.layout.reading_back import entry_of, tensors_of
from torchkeep.checkpointing.state.encoding import JSON, decode
from torchkeep.checkpointing.state.sharded import Sharded, Stored
from torchkeep.contents import Box, TensorEntry
from torchkeep.errors import DamagedFile
from torchkeep.files import InputFile, digest
from torchkeep.formats import describe
from torchkeep.formats.folders.dcp_metadata import SavedTensor, tiling
from torchkeep.formats.own.manifest import (
    MANIFEST,
    RANK_STRUCTURE,
    StoredTensor,
    rank_file,
    stored_tensors,
)
from torchkeep.formats.plain_json import parse_json
from torchkeep.tensors import TensorReader, bytes_of, torch_dtype


def sharded_tensors(folder: Path, pieces: Iterable[StoredTensor]) -> dict[str, Sharded]:
    """Return the tensors that lie in pieces, by name; they are read when they are asked for.

    Raises:
        FileMissing: a shard is missing.
        DamagedFile: a piece is missing, or is that of another tensor.
    """
    files: dict[str, Mapping[str, TensorEntry]] = {}
    found: dict[str, list[tuple[TensorEntry, StoredTensor, Stored]]] = {}
    for item in pieces:
        path = folder / item.file
        if item.file not in files:
            files[item.file] = tensors_of(path)
        entry = entry_of(path, files[item.file], item.key)
        read = partial(read_piece, path, entry, item.key, item.digest)
        stored = Stored(Box(item.offsets or (), entry.shape), read)
        found.setdefault(item.name, []).append((entry, item, stored))
    return {name: _joined(folder, name, parts) for name, parts in found.items()}


def _joined(
    folder: Path, name: str, parts: list[tuple[TensorEntry, StoredTensor, Stored]]
) -> Sharded:
    entry, first, _ = parts[0]
    if any((part.dtype, item.shape) != (entry.dtype, first.shape) for part, item, _ in parts):
        raise DamagedFile(f"the pieces of {name} are of several tensors", path=folder)
    boxes = tuple(stored.box for _, _, stored in parts)
    if any(len(box.shape) != len(first.shape) for box in boxes):
        text = f"the pieces of {name} have another number of dimensions"
        raise DamagedFile(text, path=folder)
    problem = tiling(SavedTensor(entry.dtype, first.shape, boxes))
    if problem is not None:
        raise DamagedFile(f"{name}: {problem.text}", path=folder)
    pieces = tuple(stored for _, _, stored in parts)
    return Sharded(torch_dtype(entry.dtype), first.shape, pieces)


def read_piece(path: Path, entry: TensorEntry, key: str, expected: str) -> torch.Tensor:
    """Return what a file holds of a tensor after comparing it with its digest.

    Raises:
        DamagedFile: it differs.
    """
    with TensorReader(path) as reader:
        return read_compared(reader, entry, key, expected)


def read_compared(
    reader: TensorReader, entry: TensorEntry, key: str, expected: str
) -> torch.Tensor:
    """Return a tensor of a file after comparing it with its digest.

    Raises:
        DamagedFile: it differs.
    """
    tensor = reader.materialize(entry, key)
    if digest(bytes_of(tensor)) != expected:
        raise DamagedFile(f"tensor {key} differs from what was written", path=reader.path)
    return tensor


def nodes_of_ranks(folder: Path, manifest: Mapping[str, Any], name: str) -> list[Any]:
    """Return what each rank has for a part of the structure, such as `data`, decoded.

    Raises:
        FileMissing: a rank's file is missing.
        DamagedFile: it is not what was written.
    """
    found = []
    for rank in range(manifest.get("ranks", 1)):
        nodes = own_nodes(folder, manifest, rank) if rank else manifest["structure"]
        if name not in nodes:
            path = folder / (rank_file(rank) if rank else MANIFEST)
            raise DamagedFile(f"it does not say what {name!r} this rank had", path=path)
        found.append(_decoded(folder, manifest, rank, nodes[name]))
    return found


def _decoded(folder: Path, manifest: Mapping[str, Any], rank: int, node: JSON) -> Any:
    """Return a part of a rank's structure with its tensors, and read no others."""
    wanted = set(tensors_in(node))
    tensors: dict[str, torch.Tensor] = {}
    for item in stored_tensors(manifest, rank):
        if item.name in wanted and item.offsets is None:
            path = folder / item.file
            entry = entry_of(path, tensors_of(path), item.key)
            tensors[item.name] = read_piece(path, entry, item.key, item.digest)
    return decode(tensors, node)


def own_nodes(folder: Path, manifest: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Return the parts of the structure that a rank has for itself, from its file.

    They stand in its header, which is compared with what was written: the tensors alone may be
    those of another checkpoint of the run as well.

    Raises:
        FileMissing: there is none.
        DamagedFile: it has none, or is not the file that was written.
    """
    path = folder / rank_file(rank)
    entries = tensors_of(path)
    with InputFile(path) as file:
        nbytes = file.nbytes - sum(entry.storage.nbytes for entry in entries.values())
        header = file.read_at(0, max(nbytes, 0))
    if digest(header) != manifest["files"][path.name]["digest"]:
        raise DamagedFile("its header differs from what was written", path=path)
    text = describe(path).metadata.get(RANK_STRUCTURE)
    nodes = None if text is None else parse_json(text)
    if not isinstance(nodes, dict):
        raise DamagedFile("it does not say what this rank had for itself", path=path)
    return nodes
