"""Tensors that are no plain view of a storage: sparse, quantized, nested, wrapped, elsewhere.

Each is an entry with the shape and dtype that PyTorch would tell, and `parts`: the plain tensors
that it is made of, which are what lies in the file.

Source: torch/_utils.py (`_rebuild_*`), torch/_tensor.py (`_reduce_ex_internal`),
torch/nested/_internal/nested_tensor.py (`_rebuild_njt`), torch/serialization.py (`_get_layout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torchkeep.contents import (
    Array,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
    attributes_of,
    contiguous_stride,
)
from torchkeep.formats.torch.objects import (
    TENSOR_CONSTRUCTORS,
    read_dtype,
    rebuild_tensor_v2,
    sizes,
)
from torchkeep.pickles.pickled import Constructor

_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sparse_coo": ("indices", "values"),
        "sparse_csr": ("crow_indices", "col_indices", "values"),
        "sparse_bsr": ("crow_indices", "col_indices", "values"),
        "sparse_csc": ("ccol_indices", "row_indices", "values"),
        "sparse_bsc": ("ccol_indices", "row_indices", "values"),
    }
)
"""What a sparse tensor of each layout is made of, in the order in which it is pickled."""


SPARSE_CLASSES = frozenset(
    f"torch.{package}.{kind}Tensor"
    for package in ("sparse", "cuda.sparse")
    for kind in ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
)
"""The classes of sparse tensors, which a pickle may call."""

_QUANTIZED = frozenset({"qint8", "quint8", "qint32", "quint4x2", "quint2x4"})


def elsewhere(
    dtype: str, shape: tuple[int, ...], stride: tuple[int, ...], device: str = "cpu"
) -> TensorEntry:
    """Return an entry for a tensor that has no storage of its own in the file."""
    return TensorEntry(dtype, shape, stride, Storage("", 0, None, device))


def _rebuild_sparse(layout: Value, data: Value) -> TensorEntry:
    kind = layout.name if isinstance(layout, Global) and layout.module == "torch" else ""
    if kind not in _PARTS or not isinstance(data, tuple):
        raise ValueError("a sparse tensor of an unknown layout")
    names = _PARTS[kind]
    tensors, rest = data[: len(names)], data[len(names) :]
    if not all(isinstance(part, TensorEntry) for part in tensors) or not rest:
        raise ValueError("a sparse tensor needs its indices, values and size")
    shape, values = sizes(rest[0]), tensors[-1]
    if kind == "sparse_coo" and not _fits(tensors[0].shape, values.shape, shape):
        raise ValueError("the indices of a sparse tensor do not fit its values and shape")
    entry = elsewhere(values.dtype, shape, (), values.storage.device)
    parts = tuple(zip(names, tensors, strict=True))
    told = rest[1] if len(rest) > 1 and isinstance(rest[1], bool) else None
    entry = replace(entry, layout=kind, parts=parts, is_coalesced=told)
    return replace(entry, requires_grad=values.requires_grad)


def _sparse_by_class(*args: Value) -> TensorEntry:
    """Return what a call of one of the old classes of sparse tensors makes.

    `torch.load` looks at the indices of these only where `weights_only` is set.
    """
    if len(args) != len(_PARTS["sparse_coo"]) + 1:
        raise ValueError("a sparse tensor needs its indices, values and size")
    return _rebuild_sparse(Global("torch", "sparse_coo"), args)


def _fits(indices: tuple[int, ...], values: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether indices `[sparse, n]` and values `[n, *dense]` make a tensor of this shape."""
    if len(indices) != 2 or not values or indices[1] != values[0]:
        return False
    return indices[0] + len(values) - 1 == len(shape)


def _get_layout(name: Value) -> Global:
    """Return what `torch.serialization._get_layout("torch.sparse_coo")` gives."""
    if not isinstance(name, str) or name.removeprefix("torch.") not in (*_PARTS, "strided"):
        raise ValueError("an unknown layout")
    return Global("torch", name.removeprefix("torch."))


def _rebuild_qtensor(
    reference: Value,
    offset: Value,
    size: Value,
    stride: Value,
    quantizer: Value,
    requires_grad: Value,
    hooks: Value,
) -> TensorEntry:
    entry = rebuild_tensor_v2(reference, offset, size, stride, requires_grad, hooks)
    if entry.dtype not in _QUANTIZED:
        raise ValueError(f"a quantized tensor of the plain type {entry.dtype}")
    if not isinstance(quantizer, tuple) or not quantizer or not isinstance(quantizer[0], Global):
        raise ValueError("a quantized tensor needs its scheme")
    scheme, *parameters = quantizer
    parts = zip(("scales", "zero_points"), parameters, strict=False)
    tensors = tuple((name, part) for name, part in parts if isinstance(part, TensorEntry))
    numbers = tuple(part for part in parameters if isinstance(part, int | float | list))
    return replace(entry, quantizer=(scheme.name, *numbers), parts=tensors)


def _rebuild_nested(buffer: Value, shapes: Value, strides: Value, offsets: Value) -> TensorEntry:
    named = {"values": buffer, "sizes": shapes, "strides": strides, "offsets": offsets}
    parts = tuple((name, part) for name, part in named.items() if isinstance(part, TensorEntry))
    if not isinstance(buffer, TensorEntry) or not isinstance(shapes, TensorEntry):
        raise ValueError("a nested tensor needs its values and its sizes")
    return _ragged(buffer, shapes.shape[0] if shapes.shape else 0, "nested", parts)


def _rebuild_jagged(arguments: Value) -> TensorEntry:
    if not isinstance(arguments, dict) or not isinstance(arguments.get("values"), TensorEntry):
        raise ValueError("a jagged tensor needs its values")
    values, offsets = arguments["values"], arguments.get("offsets")
    length = offsets.shape[0] - 1 if isinstance(offsets, TensorEntry) and offsets.shape else 0
    names = ("values", "offsets", "lengths")
    tensors = [(name, arguments.get(name)) for name in names]
    parts = tuple((name, part) for name, part in tensors if isinstance(part, TensorEntry))
    return _ragged(values, max(length, 0), "jagged", parts)


def _ragged(
    values: TensorEntry, length: int, layout: str, parts: tuple[tuple[str, TensorEntry], ...]
) -> TensorEntry:
    """Return a tensor of tensors of several lengths, of which only the first size is known."""
    entry = elsewhere(values.dtype, (length,), (), values.storage.device)
    return replace(entry, layout=layout, parts=parts, requires_grad=values.requires_grad)


def _rebuild_wrapper(
    cls: Value,
    dtype: Value,
    size: Value,
    stride: Value,
    offset: Value,
    layout: Value,
    device: Value,
    requires_grad: Value,
) -> TensorEntry:
    """Return a tensor whose class keeps others inside, which its state will tell."""
    del offset, layout
    if not isinstance(cls, Global):
        raise ValueError("a tensor of a class of its own needs the class")
    shape, strides = sizes(size), sizes(stride)
    if len(shape) != len(strides):
        raise ValueError(f"shape {shape} and strides {strides} do not belong together")
    entry = elsewhere(read_dtype(dtype), shape, strides, device if isinstance(device, str) else "")
    return replace(entry, class_path=str(cls), requires_grad=bool(requires_grad))


def _rebuild_from_type(func: Value, cls: Value, args: Value, state: Value) -> Value:
    """Return the tensor in a tensor of a class of its own, or with attributes of its own."""
    rebuild = LAYOUT_CONSTRUCTORS.get(str(func)) if isinstance(func, Global) else None
    if rebuild is None or not isinstance(args, tuple):
        return Object(Global("torch._tensor", "_rebuild_from_type_v2"), (func, cls, args, state))
    entry = rebuild(*args)
    if not isinstance(entry, TensorEntry) or not isinstance(cls, Global):
        return entry
    inner = tuple(
        (str(name), part)
        for name, part in attributes_of(state).items()
        if isinstance(part, TensorEntry)
    )
    is_plain = str(cls) in ("torch.Tensor", "torch.nn.parameter.Parameter")
    if is_plain or entry.layout != "strided":
        return entry
    return replace(entry, class_path=str(cls), parts=entry.parts or inner)


def _rebuild_device_tensor(
    data: Value, dtype: Value, device: Value, requires_grad: Value
) -> TensorEntry:
    """Return a tensor of a device whose memory can't be saved, from its copy on the CPU."""
    if isinstance(data, Array):
        data = data.entry
    if not isinstance(data, TensorEntry) or not isinstance(device, str):
        raise ValueError("a tensor of another device needs its copy and the device")
    name = read_dtype(dtype)
    if name != data.dtype:  # it would be converted, and is not what the bytes say
        shape = data.shape
        made = elsewhere(name, shape, contiguous_stride(shape), device)
        return replace(made, parts=(("data", data),), requires_grad=bool(requires_grad))
    storage = replace(data.storage, device=device)
    return replace(data, storage=storage, requires_grad=bool(requires_grad))


LAYOUT_CONSTRUCTORS: Mapping[str, Constructor] = MappingProxyType(
    {
        **TENSOR_CONSTRUCTORS,
        "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
        "torch._utils._rebuild_sparse_csr_tensor": _rebuild_sparse,  # PyTorch 1.10 to 1.12
        **dict.fromkeys(SPARSE_CLASSES, _sparse_by_class),
        "torch.serialization._get_layout": _get_layout,
        "torch._utils._rebuild_qtensor": _rebuild_qtensor,
        "torch._utils._rebuild_nested_tensor": _rebuild_nested,
        "torch.nested._internal.nested_tensor._rebuild_njt": _rebuild_jagged,
        "torch._utils._rebuild_wrapper_subclass": _rebuild_wrapper,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.tensor._rebuild_from_type_v2": _rebuild_from_type,  # its module up to PyTorch 1.8
        "torch._utils._rebuild_device_tensor_from_numpy": _rebuild_device_tensor,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_device_tensor,
        "torch._utils._rebuild_xla_tensor": _rebuild_device_tensor,
    }
)
"""The calls that make tensors of every layout, by dotted name."""
