"""How PyTorch writes tensors into a pickle, read back as entries.

A storage is a persistent id, `('storage', StorageClass, key, location, numel)`; what it becomes
depends on the container. A tensor is a call of a rebuild function on a storage.

Source: torch/_utils.py (`_rebuild_*`), torch/_tensor.py (`__reduce_ex__`), torch/storage.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from torchkeep.contents import ITEM_SIZE, Global, Object, Storage, TensorEntry, Value
from torchkeep.errors import DamagedFile
from torchkeep.pickles.pickled import Constructor

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
        view = (view[0] if isinstance(view[0], str) else "", view[1], view[2])
    return StorageId(cls.name, key, device, numel, view)


def _is_size(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def sizes(value: Value) -> tuple[int, ...]:
    """Return sizes or strides as a tuple; ValueError if they are none."""
    if not isinstance(value, tuple | list) or not all(map(_is_size, value)):
        raise ValueError("sizes and strides are tuples of numbers that are not negative")
    return tuple(value)


def storage_entry(storage: Storage, parts: StorageId) -> TensorEntry:
    """Return a storage as tensors' rebuild calls see it: as the flat tensor of all its elements.

    A storage that stands in the tree by itself is such a tensor, too.

    Raises:
        DamagedFile: the persistent id names a part that reaches over the storage's end.
    """
    item_nbytes = ITEM_SIZE[parts.dtype]
    numel, offset = storage.nbytes // item_nbytes, 0
    if parts.view is not None:
        _, offset, size = parts.view
        if offset + size > numel:
            raise DamagedFile(
                f"a tensor uses elements {offset} to {offset + size} of storage {parts.key!r}, "
                f"which has {numel}"
            )
        numel = size
    return TensorEntry(parts.dtype, (numel,), (1,), storage, offset)


def _strided(
    reference: Value,
    dtype: str | None,
    offset: Value,
    size: Value,
    stride: Value,
    requires_grad: Value = False,
) -> TensorEntry:
    """Return a view of a storage; `dtype` is None for the storage's own."""
    if not isinstance(reference, TensorEntry):
        raise ValueError("a tensor needs a storage")
    shape, strides = sizes(size), sizes(stride)
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS or not _is_size(offset):
        raise ValueError(f"shape {shape} and strides {strides} do not belong together")
    dtype = dtype or reference.dtype
    skipped = reference.storage_offset * ITEM_SIZE[reference.dtype]
    if skipped % ITEM_SIZE[dtype]:
        raise ValueError(f"a tensor of {dtype} starts at byte {skipped} of its storage")
    entry = TensorEntry(
        dtype=dtype,
        shape=shape,
        stride=strides,
        storage=reference.storage,
        storage_offset=offset + skipped // ITEM_SIZE[dtype],
        requires_grad=bool(requires_grad),
    )
    if entry.numel >= 1 << 63:  # strides of 0 make any number of elements out of one
        raise ValueError(f"a tensor of {len(shape)} dimensions has too many elements to count")
    # In bytes of the storage; several elements may share one of these.
    available = skipped + reference.numel * ITEM_SIZE[reference.dtype]
    needed = entry.nbytes_needed
    if needed > available:
        raise ValueError(
            f"a tensor of shape {shape} needs {needed} bytes of storage "
            f"{reference.storage.key!r}, which has {available}"
        )
    return entry


_MOST_DIMENSIONS = 1_000
"""PyTorch sets no bound; its own operations take 64 at the most."""


def _rebuild_tensor(reference: Value, offset: Value, size: Value, stride: Value) -> TensorEntry:
    return _strided(reference, None, offset, size, stride)


def rebuild_tensor_v2(
    reference: Value,
    offset: Value,
    size: Value,
    stride: Value,
    requires_grad: Value,
    hooks: Value,
    metadata: Value = None,
) -> TensorEntry:
    """Return the view of a storage that `torch._utils._rebuild_tensor_v2` makes."""
    del hooks
    return _flagged(_strided(reference, None, offset, size, stride, requires_grad), metadata)


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
    del hooks
    entry = _strided(reference, read_dtype(dtype), offset, size, stride, requires_grad)
    return _flagged(entry, metadata)


def _flagged(entry: TensorEntry, metadata: Value) -> TensorEntry:
    """Return the entry with the signs that a lazily conjugated or negated view keeps apart."""
    if not isinstance(metadata, dict):
        return entry
    is_conj, is_neg = metadata.get("conj") is True, metadata.get("neg") is True
    return replace(entry, is_conj=is_conj, is_neg=is_neg) if is_conj or is_neg else entry


def read_dtype(value: Value) -> str:
    """Return the name of a `torch.dtype` that the file mentions; ValueError if it is none."""
    if not isinstance(value, Global) or value.module != "torch" or value.name not in ITEM_SIZE:
        raise ValueError("a tensor of an unknown element type")
    return value.name


def _rebuild_meta_tensor(
    dtype: Value, size: Value, stride: Value, requires_grad: Value
) -> TensorEntry:
    """Return a tensor that was saved from the meta device, and so has no bytes."""
    endless = TensorEntry(read_dtype(dtype), (1 << 63,), (1,), Storage("", 0, None, "meta"))
    entry = _strided(endless, None, 0, size, stride, requires_grad)
    return replace(entry, storage=Storage("", entry.nbytes_needed, None, "meta"))


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


def _variable(data: Value = None, requires_grad: Value = False, volatile: Value = False) -> Value:
    """Return the `Variable` of PyTorch up to 0.3, which was a tensor with a flag."""
    del volatile
    if not isinstance(data, TensorEntry):
        return Object(_VARIABLE, () if data is None else (data,))
    return replace(data, requires_grad=bool(requires_grad))


def _parameter(data: Value = None, requires_grad: Value = True) -> Value:
    if data is None:  # the oldest files set its tensor afterwards; see `build_tensor`
        return Object(_PARAMETER, ())
    return _rebuild_parameter(data, requires_grad, None)


_VARIABLE = Global("torch.autograd.variable", "Variable")
_PARAMETER = Global("torch.nn.parameter", "Parameter")


def build_tensor(target: Value, state: Value) -> Value | None:
    """Return what a pickle's BUILD makes of a tensor in the files of PyTorch 0.1 to 0.3.

    A parameter or a variable is made from its tensor, and `(requires_grad, volatile, hooks)` is
    set on it; before that it was made from nothing, and `(tensor, gradient, hooks, requires_grad,
    volatile)` was set. A tensor was made from nothing, and `(storage, offset, size, stride)` was
    set. None stands for anything else.

    Raises:
        DamagedFile: the state is of that kind and makes no sense.
    """
    if not isinstance(state, tuple) or not isinstance(target, TensorEntry | Object):
        return None
    if isinstance(target, TensorEntry):
        is_flags = len(state) == 3 and all(isinstance(flag, bool) for flag in state[:2])
        return replace(target, requires_grad=state[0]) if is_flags else None
    try:
        if len(state) == 5 and target.callee in (_VARIABLE, _PARAMETER):
            entry = _rebuild_parameter(state[0], state[3], None)
            return replace(entry, is_parameter=target.callee == _PARAMETER)
        if len(state) == 4 and _OLD_TENSOR.fullmatch(target.class_path):
            return _rebuild_tensor(*state)
    except ValueError as error:
        raise DamagedFile(f"the pickle sets a broken state on a tensor: {error}") from None
    return None


_OLD_TENSOR = re.compile(
    r"torch\.((cuda\.)?(BFloat16|Bool|Byte|Char|Double|Float|Half|Int|Long|Short))?Tensor"
)


def _size(items: Value = ()) -> tuple[int, ...]:
    return sizes(items)


def _device(*args: Value) -> str:
    return ":".join(str(arg) for arg in args if isinstance(arg, str | int))


TENSOR_CONSTRUCTORS: Mapping[str, Constructor] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
        "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta_tensor,
        "torch.nn.parameter.Parameter": _parameter,
        "torch.autograd.variable.Variable": _variable,
        "torch.Size": _size,
        "torch.device": _device,
    }
)
"""The calls that make plain tensors, by dotted name."""

PersistentLoad = Callable[[Value], Value]
"""What a pickle machine asks for the value of a persistent id."""
