"""A sharded model as one file beside its shards, for whoever takes it from there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torchkeep.checkpointing.layout.folder import write_tensors
from torchkeep.checkpointing.layout.pieces import read_piece, sharded_tensors
from torchkeep.checkpointing.layout.reading_back import entry_of, tensors_of
from torchkeep.checkpointing.state.sharded import Sharded, Stored
from torchkeep.contents import Box
from torchkeep.files import Buffer
from torchkeep.formats.own.manifest import (
    MODEL_FILE,
    StoredTensor,
    is_model_shard,
    stored_tensors,
)
from torchkeep.tensors import bytes_of, dtype_name, torch_dtype
from torchkeep.writing.payload import Payload
from torchkeep.writing.safetensors import Layout, TensorData


def write_whole_model(folder: Path, manifest: dict[str, Any], *, durable: bool) -> None:
    """Write `model.safetensors` from the shards in a folder, and tell the manifest.

    In memory there are never more than a few tensors, each as a whole.

    Args:
        folder: where the shards are.
        manifest: what they hold.
        durable: sync it.

    Raises:
        SaveRefused: the place can't be written.
        DamagedFile: a shard is not what was written.
    """
    tensors = _model(folder, manifest)
    if not tensors:
        return
    layout = Layout({key: _data(tensor) for key, tensor in tensors.items()}, {})
    write_tensors(folder / MODEL_FILE, layout, manifest, durable=durable)


def _model(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Sharded]:
    """Return the tensors of the shards by their names in the model."""
    stored = [item for item in stored_tensors(manifest) if is_model_shard(item.file)]
    names = {item.name: item.key for item in stored}
    pieces = [item for item in stored if item.offsets is not None]
    found = sharded_tensors(folder, pieces) | _wholes(folder, stored)
    return {names[name]: tensor for name, tensor in found.items()}


def _wholes(folder: Path, stored: Iterable[StoredTensor]) -> dict[str, Sharded]:
    """Return the tensors that a shard has whole, as ones of a single piece."""
    found = {}
    for item in stored:
        if item.offsets is None:
            path = folder / item.file
            entry = entry_of(path, tensors_of(path), item.key)
            read = partial(read_piece, path, entry, item.key, item.digest)
            piece = Stored(Box((0,) * len(entry.shape), entry.shape), read)
            found[item.name] = Sharded(torch_dtype(entry.dtype), entry.shape, (piece,))
    return found


def _data(tensor: Sharded) -> TensorData:
    nbytes = prod(tensor.shape) * tensor.dtype.itemsize

    def read(begin: int, end: int) -> Iterable[Buffer]:
        return (bytes_of(tensor.whole())[begin:end],)

    return TensorData(dtype_name(tensor.dtype), tuple(tensor.shape), Payload(nbytes, read))
