"""How PyTorch writes tensors into a pickle, read back as entries.

A storage is a persistent id, `('storage', StorageClass, key, location, numel)`; what it becomes
depends on the container. A tensor is a call of a rebuild function on a storage.

Source: torch/_utils.py (`_rebuild_*`), torch/_tensor.py (`__reduce_ex__`), torch/storage.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from torchkeep.contents import ITEM_SIZE, Global, Storage, TensorEntry, Value
from torchkeep.pickles.constructors import CONSTRUCTORS
from torchkeep.pickles.machine import Constructor

STORAGE_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "ComplexDoubleStorage": "complex128",
        "ComplexFloatStorage": "complex64",
        "QUInt8Storage": "quint8",
        "QInt8Storage": "qint8",
        "QInt32Storage": "qint32",
        "QUInt4x2Storage": "quint4x2",
        "QUInt2x4Storage": "quint2x4",
        "UntypedStorage": "uint8",
    }
)
"""The element type of each storage class, by the class's bare name."""

UNTYPED = "UntypedStorage"


@dataclass(frozen=True, slots=True)
class StorageReference:
    """A storage as a tensor's rebuild call sees it: the bytes, and how to count in them."""

    storage: Storage
    dtype: str
    """The element type of its class; `uint8` for an untyped one."""
    offset: int = 0
    """Elements to skip: a legacy file may name a part of a storage."""


@dataclass(frozen=True, slots=True)
class StorageId:
    """A persistent id of a storage, taken apart."""

    class_name: str
    key: str
    device: str
    numel: int
    """Elements of the class's type, or bytes where the class is untyped."""
    view: tuple[str, int, int] | None = None
    """For a part of another storage: its own key, first element, number of elements."""

    @property
    def dtype(self) -> str:
        """The element type."""
        return STORAGE_DTYPES[self.class_name]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole storage."""
        return self.numel * ITEM_SIZE[self.dtype]


def parse_storage_id(pid: Value) -> StorageId | None:
    """Return the parts of a storage's persistent id, or None if it is anything else."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        return None
    cls, key, device, numel = pid[1:5]
    if not isinstance(cls, Global) or cls.name not in STORAGE_DTYPES:
        return None
    if not _is_size(numel) or not isinstance(device, str):
        return None
    if isinstance(key, int):  # very old files
        key = str(key)
    if not isinstance(key, str):
        return None
    view = pid[5] if len(pid) == 6 else None
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not all(map(_is_size, view[1:])):
            return None
        view = (str(view[0]), view[1], view[2])
    return StorageId(cls.name, key, device, numel, view)


def _is_size(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _sizes(value: Value) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(map(_is_size, value)):
        raise ValueError("sizes and strides are tuples of numbers that are not negative")
    return tuple(value)


def _strided(
    reference: Value, dtype: str, offset: Value, size: Value, stride: Value
) -> TensorEntry:
    if not isinstance(reference, StorageReference):
        raise ValueError("a tensor needs a storage")
    shape, strides = _sizes(size), _sizes(stride)
    if len(shape) != len(strides) or not _is_size(offset):
        raise ValueError(f"shape {shape} and strides {strides} do not belong together")
    entry = TensorEntry(
        dtype=dtype,
        shape=shape,
        stride=strides,
        storage=reference.storage,
        storage_offset=offset + reference.offset,
    )
    needed = last_byte(entry)
    if needed > reference.storage.nbytes:
        raise ValueError(
            f"a tensor of shape {shape} needs {needed} bytes of storage "
            f"{reference.storage.key!r}, which has {reference.storage.nbytes}"
        )
    return entry


def last_byte(entry: TensorEntry) -> int:
    """Return the number of bytes that the storage must have for this view; 0 if it is empty."""
    if entry.numel == 0:
        return 0
    last = sum((size - 1) * step for size, step in zip(entry.shape, entry.stride, strict=True))
    return (entry.storage_offset + last + 1) * ITEM_SIZE[entry.dtype]


def _rebuild_tensor(reference: Value, offset: Value, size: Value, stride: Value) -> TensorEntry:
    dtype = reference.dtype if isinstance(reference, StorageReference) else ""
    return _strided(reference, dtype, offset, size, stride)


def _rebuild_tensor_v2(
    reference: Value,
    offset: Value,
    size: Value,
    stride: Value,
    requires_grad: Value,
    hooks: Value,
    metadata: Value = None,
) -> TensorEntry:
    del hooks, metadata  # callables and flags; neither changes the bytes
    entry = _rebuild_tensor(reference, offset, size, stride)
    return replace(entry, requires_grad=bool(requires_grad))


def _rebuild_tensor_v3(
    reference: Value,
    offset: Value,
    size: Value,
    stride: Value,
    requires_grad: Value,
    hooks: Value,
    dtype: Value,
    metadata: Value = None,
) -> TensorEntry:
    del hooks, metadata
    if not isinstance(dtype, Global) or dtype.name not in ITEM_SIZE:
        raise ValueError("a tensor of an unknown element type")
    entry = _strided(reference, dtype.name, offset, size, stride)
    return replace(entry, requires_grad=bool(requires_grad))


def _rebuild_parameter(data: Value, requires_grad: Value, hooks: Value) -> TensorEntry:
    del hooks
    if not isinstance(data, TensorEntry):
        raise ValueError("a parameter needs a tensor")
    return replace(data, requires_grad=bool(requires_grad), is_parameter=True)


def _rebuild_parameter_with_state(
    data: Value, requires_grad: Value, hooks: Value, state: Value
) -> TensorEntry:
    del state  # attributes that were set on the parameter
    return _rebuild_parameter(data, requires_grad, hooks)


def _size(items: Value = ()) -> tuple[int, ...]:
    return _sizes(items)


def _device(*args: Value) -> str:
    return ":".join(str(arg) for arg in args if isinstance(arg, str | int))


_TORCH_CONSTRUCTORS: Mapping[str, Constructor] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    "torch.nn.parameter.Parameter": lambda data, requires_grad=True: _rebuild_parameter(
        data, requires_grad, None
    ),
    "torch.Size": _size,
    "torch.device": _device,
}

TORCH_CONSTRUCTORS: Mapping[str, Constructor] = MappingProxyType(
    {**CONSTRUCTORS, **_TORCH_CONSTRUCTORS}
)
"""The calls that every reader of PyTorch's pickles answers."""

PersistentLoad = Callable[[Value], Value]
"""What a pickle machine asks for the value of a persistent id."""
