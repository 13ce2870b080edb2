"""Live tensors to safetensors files; `writing.safetensors` writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import torch

from torchkeep.files import Progress
from torchkeep.saving.leaves import check_tensor
from torchkeep.saving.live import payload_of_elements
from torchkeep.tensors import dtype_name, identity
from torchkeep.writing import safetensors as writer
from torchkeep.writing.report import SaveReport
from torchkeep.writing.safetensors import TensorData
from torchkeep.writing.shards import write_shards


def write_safetensors(
    tensors: Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    shard_nbytes: int | None = None,
    durable: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SaveReport:
    """Write named tensors; the file appears whole or not at all.

    The bytes follow from the arguments alone: the same tensors and metadata give the same file.

    Args:
        tensors: the tensors by name, on any device, of any strides. Each name is stored with its
            values; that two names are one tensor is recorded, other shared memory is not.
        path: the file.
        metadata: texts for the header's `__metadata__`. The tensors' digests are added.
        shard_nbytes: bytes of tensors in a file at the most; more is written into several, see
            `writing.shards`.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there.
        progress: is called with the bytes that are written and of all, as they are written.

    Raises:
        SaveRefused: a tensor can't be stored in this format (it is named), or the place can't be
            written to. An old file is intact.
    """
    write: Callable[..., SaveReport] = writer.write_safetensors
    if shard_nbytes is not None:
        write = partial(write_shards, shard_nbytes=shard_nbytes)
    return write(
        described(tensors),
        path,
        metadata=metadata,
        durable=durable,
        overwrite=overwrite,
        progress=progress,
    )


def described(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorData]:
    """Return the tensors as the writer takes them, those that are one tensor as one object.

    Raises:
        SaveRefused: a value is no tensor, or one that this format can't hold.
    """
    found: dict[tuple[object, ...], TensorData] = {}
    described: dict[str, TensorData] = {}
    for name, tensor in tensors.items():
        check_tensor(tensor, name)
        one = identity(tensor)
        if one not in found:
            dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
            found[one] = TensorData(dtype, shape, payload_of_elements(tensor))
        described[name] = found[one]
    return described
