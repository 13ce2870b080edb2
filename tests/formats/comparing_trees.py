"""Compares a tree of inert values with live objects, tensors bit for bit."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch

from torchkeep.contents import TensorEntry
from torchkeep.tensors import TensorReader


def assert_same(mine: Any, theirs: Any, path: Path, place: str = "") -> int:
    """Compare what was described with what was saved; return how many tensors that are.

    Keys are compared as texts: distributed checkpoints have no others.
    """
    if isinstance(theirs, torch.Tensor):
        assert isinstance(mine, TensorEntry), place
        assert (mine.dtype, mine.shape) == (str(theirs.dtype)[6:], tuple(theirs.shape)), place
        assert read(mine, path).tolist() == theirs.detach().tolist(), place
        return 1
    if isinstance(theirs, dict):
        assert isinstance(mine, dict), place
        held = {str(key): value for key, value in mine.items()}
        assert set(held) == {str(key) for key in theirs}, place
        return sum(
            assert_same(held[str(k)], value, path, f"{place}.{k}") for k, value in theirs.items()
        )
    if isinstance(theirs, list | tuple):
        assert (type(mine), len(mine)) == (type(theirs), len(theirs)), place
        pairs = enumerate(zip(mine, theirs, strict=True))
        return sum(assert_same(*pair, path, f"{place}.{index}") for index, pair in pairs)
    assert mine == theirs or (math.isnan(mine) and math.isnan(theirs)), place
    return 0


def read(entry: TensorEntry, path: Path) -> torch.Tensor:
    """Return the tensor that an entry in the description of `path` stands for."""
    if not entry.chunks:
        with TensorReader(path) as reader:
            return reader.materialize(entry)
    dtype = getattr(torch, entry.dtype)
    whole = torch.empty(entry.shape, dtype=dtype)
    for chunk in entry.chunks:
        data = chunk.path.read_bytes()[chunk.start : chunk.start + chunk.nbytes]
        assert len(data) == chunk.nbytes
        if len(data) == math.prod(chunk.shape) * dtype.itemsize:  # raw
            piece = torch.frombuffer(bytearray(data), dtype=dtype).view(chunk.shape)
        else:
            piece = torch.load(io.BytesIO(data), weights_only=True)
        pairs = zip(chunk.offsets, chunk.shape, strict=True)
        whole[tuple(slice(start, start + size) for start, size in pairs)] = piece
    return whole
