"""Tensors that are made of others: sparse, nested, quantized, wrapped.

`formats.torch.layouts` describes them as an entry with parts; here the parts, made by the caller,
become the one tensor again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from torchkeep.contents import ROW_BITS, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent

Materialize = Callable[[TensorEntry, str], torch.Tensor]
"""Makes the tensor of an entry; the second argument is what to call it in an error."""


def assemble(entry: TensorEntry, name: str, materialize: Materialize) -> torch.Tensor:
    """Return the tensor that an entry's parts make, on the device of the parts.

    Args:
        entry: a composite entry without chunks.
        name: what to call it in an error.
        materialize: makes a part.

    Raises:
        DamagedFile: the parts don't fit each other, as out of bounds indices don't.
        UnsupportedContent: it is of a class of its own that can't be told from its parts.
    """
    parts = {key: materialize(part, f"{name}.{key}") for key, part in entry.parts}
    try:
        if entry.layout.startswith("sparse_"):
            return _sparse(entry, parts)
        if entry.layout == "jagged":
            return torch.nested.nested_tensor_from_jagged(
                parts["values"], parts["offsets"], parts.get("lengths")
            )
        if entry.layout == "nested":
            return torch.nested.nested_tensor(_rows(parts))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(name, str(error).split("\n")[0]) from None
    return _unwrapped(entry, name, parts)


def _damaged(name: str, why: str) -> FileProblem:
    return DamagedFile(f"tensor {name!r}: its parts don't fit each other ({why})")


def _sparse(entry: TensorEntry, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    values = parts["values"]
    if entry.layout == "sparse_coo":
        made = torch.sparse_coo_tensor(parts["indices"], values, entry.shape, check_invariants=True)
        is_coalesced = entry.is_coalesced is not False and _is_sorted(parts["indices"])
        return made.coalesce() if is_coalesced else made
    compressed, plain = (tensor for key, tensor in parts.items() if key != "values")
    return torch.sparse_compressed_tensor(
        compressed,
        plain,
        values,
        entry.shape,
        layout=getattr(torch, entry.layout),
        check_invariants=True,
    )


def _is_sorted(indices: torch.Tensor) -> bool:
    """Whether a COO tensor's indices rise, so that coalescing it changes nothing."""
    return all(one < other for one, other in pairwise(indices.t().tolist()))


def _rows(parts: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors of a nested tensor, views of its values."""
    rows = zip(
        parts["sizes"].tolist(), parts["strides"].tolist(), parts["offsets"].tolist(), strict=True
    )
    values = parts["values"]
    return [torch.as_strided(values, size, stride, offset) for size, stride, offset in rows]


def _unwrapped(entry: TensorEntry, name: str, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the one part of a wrapper that is the whole tensor already."""
    whole = [
        tensor
        for (_, part), tensor in zip(entry.parts, parts.values(), strict=True)
        if (part.shape, part.dtype) == (entry.shape, entry.dtype)
    ]
    if len(whole) == 1:
        return whole[0]
    listed = ", ".join(parts) or "none"
    raise UnsupportedContent(
        f"tensor {name!r} is a {entry.class_path or entry.layout} made of parts ({listed})",
        advice="Only its own class can put it together; its parts can be read one by one.",
    )


def quantized(
    entry: TensorEntry, name: str, numbers: torch.Tensor, parts: Materialize
) -> torch.Tensor:
    """Return the quantized tensor of these integers.

    Args:
        entry: a tensor with a quantizer.
        name: what to call it in an error.
        numbers: the tensor of `numbers_of`.
        parts: makes the scales and zero points where these are tensors.

    Raises:
        UnsupportedContent: its scheme is unknown.
        DamagedFile: scales or zero points don't fit it.
    """
    scheme, *rest = entry.quantizer
    tensors = [parts(part, f"{name}.{key}") for key, part in entry.parts]
    is_packed = entry.dtype in ROW_BITS
    try:
        if scheme == "per_tensor_affine":
            scale, zero_point = rest
            if is_packed:
                return _packed(entry, numbers, None, scale, zero_point)
            # Public functions quantize floats; only these take the integers as they are.
            return torch._make_per_tensor_quantized_tensor(numbers, scale, zero_point)
        if scheme in ("per_channel_affine", "per_channel_affine_float_qparams"):
            *lists, axis = rest
            scales, zero_points = tensors or map(torch.tensor, lists)
            _check_channels(entry, scales, zero_points, axis)
            if is_packed:
                return _packed(entry, numbers, axis, scales, zero_points)
            return torch._make_per_channel_quantized_tensor(numbers, scales, zero_points, axis)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _damaged(name, str(error).split("\n")[0]) from None
    raise UnsupportedContent(f"tensor {name!r} is quantized in an unknown way ({scheme})")


def _check_channels(
    entry: TensorEntry, scales: torch.Tensor, zero_points: torch.Tensor, axis: int
) -> None:
    """Raise ValueError unless there is a scale and a zero point for each channel.

    PyTorch does not check it, and would look for them behind the end.
    """
    if not 0 <= axis < len(entry.shape):
        raise ValueError(f"there is no dimension {axis}")
    channels = (entry.shape[axis],)
    if scales.shape != channels or zero_points.shape != channels:
        raise ValueError(f"each of {channels[0]} channels needs a scale and a zero point")


def _packed(
    entry: TensorEntry, numbers: torch.Tensor, axis: int | None, scale: Any, zero_point: Any
) -> torch.Tensor:
    """Return a quantized tensor whose elements share bytes.

    As `torch._utils._rebuild_qtensor` does it: an empty one is made, and gets the storage.
    """
    dtype = getattr(torch, entry.dtype)
    if axis is None:
        made = torch._empty_affine_quantized([], scale=scale, zero_point=zero_point, dtype=dtype)
    else:
        made = torch._empty_per_channel_affine_quantized(
            [], scales=scale, zero_points=zero_point, axis=axis, dtype=dtype
        )
    return made.set_(numbers.untyped_storage(), 0, entry.shape, entry.stride)
