"""NumPy's scalars and arrays as pickles hold them, made into plain numbers and `Array`s.

An array is `_reconstruct(ndarray, (0,), b"b")` with `(version, shape, dtype, fortran, data)` set on
it as its state; in protocol 5 it is `_frombuffer(data, dtype, shape, order)`. A dtype is
`dtype("f4", False, True)` with a state whose second item is the byte order.

Source: numpy/_core/numeric.py, and `array_reduce` and `array_setstate` in NumPy's
_core/src/multiarray/methods.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Literal

from torchkeep.contents import ITEM_SIZE, Array, Global, Object, Storage, Value

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "b1": "bool",
        "i1": "int8",
        "u1": "uint8",
        "i2": "int16",
        "u2": "uint16",
        "i4": "int32",
        "u4": "uint32",
        "i8": "int64",
        "u8": "uint64",
        "f2": "float16",
        "f4": "float32",
        "f8": "float64",
        "c8": "complex64",
        "c16": "complex128",
    }
)
"""PyTorch's name for each of NumPy's type codes."""

_LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        "bool": "?",
        "int8": "b",
        "uint8": "B",
        "int16": "h",
        "uint16": "H",
        "int32": "i",
        "uint32": "I",
        "int64": "q",
        "uint64": "Q",
        "float16": "e",
        "float32": "f",
        "float64": "d",
        "complex32": "ee",
        "complex64": "ff",
        "complex128": "dd",
    }
)
"""Types of numbers in `struct`'s notation."""

_MAKERS = frozenset({"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"})
_MOST_DIMENSIONS = 64
"""NumPy's own bound."""


def parse_dtype(value: Value) -> tuple[str, Literal["little", "big"]] | None:
    """Return PyTorch's name and the byte order of a pickled dtype; None if it is no number's."""
    if not isinstance(value, Object) or value.class_path != "numpy.dtype" or not value.args:
        return None
    code = value.args[0]
    if not isinstance(code, str) or code.lstrip("<>|=") not in DTYPES:
        return None
    state = value.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else code[:1]
    return DTYPES[code.lstrip("<>|=")], "big" if order == ">" else "little"


def item_size(value: Value) -> int | None:
    """Return the bytes of one item of a pickled dtype; None if it holds Python objects, or is odd.

    `U5` is a text of five characters, `V64` a record of 64 bytes, `M8` a date.
    """
    if not isinstance(value, Object) or value.class_path != "numpy.dtype" or not value.args:
        return None
    code, state = value.args[0], value.state
    found = _CODE.fullmatch(code) if isinstance(code, str) else None
    if found is None or (isinstance(state, tuple) and len(state) > 7 and _has_objects(state[7])):
        return None
    return int(found[2]) * (4 if found[1] == "U" else 1)


_CODE = re.compile(r"[<>|=]?([biufcSUVmM])([0-9]{1,9})")


def _has_objects(flags: Value) -> bool:
    return not isinstance(flags, int) or bool(flags & 1)


def numpy_scalar(dtype: Value, data: Value = None) -> Value:
    """Return the number or the text that `numpy.core.multiarray.scalar(dtype, bytes)` makes.

    Any other scalar (bytes, a date, a record) stays a recipe.
    """
    kind, data = parse_dtype(dtype), as_bytes(data)
    if kind is None or data is None:
        text = None if data is None else _text(dtype, data)
        made = Object(Global("numpy.core.multiarray", "scalar"), (dtype, data))
        return made if text is None else text
    try:
        return unpack_number(*kind, data)
    except struct.error:
        raise ValueError(f"a NumPy scalar of type {kind[0]} in {len(data)} bytes") from None


def unpack_number(
    dtype: str, order: Literal["little", "big"], data: bytes
) -> bool | int | float | complex | None:
    r"""Return the number that these bytes are; None for a type of which Python has no number.

    >>> unpack_number("bfloat16", "little", b"\x80\x3f"), unpack_number("int8", "big", b"\xff")
    (1.0, -1)

    Raises:
        struct.error: there are more bytes or fewer than the type has.
    """
    if dtype == "bfloat16":  # the upper half of a float32
        pad = bytes(2)
        dtype, data = "float32", pad + data if order == "little" else data + pad
    if dtype not in _LAYOUTS:
        return None
    parts = struct.unpack((">" if order == "big" else "<") + _LAYOUTS[dtype], data)
    return parts[0] if len(parts) == 1 else complex(*parts)


def _text(dtype: Value, data: bytes) -> str | None:
    """Return the text that NumPy's `str_` is, four bytes a character; None if it is none."""
    found = _CODE.fullmatch(dtype.args[0]) if item_size(dtype) is not None else None
    if found is None or found[1] != "U":
        return None
    is_big = isinstance(dtype.state, tuple) and dtype.state[1:2] == (">",)
    try:
        return data.decode("utf-32-be" if is_big else "utf-32-le")
    except UnicodeDecodeError:
        return None


def numpy_frombuffer(data: Value, dtype: Value, shape: Value, order: Value) -> Value:
    """Return the array that `numpy._core.numeric._frombuffer` makes of its bytes."""
    array = make_array(data, dtype, shape, fortran=order == "F")
    if array is None:
        return Object(Global("numpy._core.numeric", "_frombuffer"), (data, dtype, shape, order))
    return array


def build_array(target: Value, state: Value) -> Array | None:
    """Return the array that a pickle's BUILD makes of an empty one; None for anything else."""
    if not isinstance(target, Object) or target.class_path not in _MAKERS:
        return None
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        return None
    shape, dtype, fortran, data = state[-4:]
    return make_array(data, dtype, shape, fortran=bool(fortran))


def make_array(data: Value, dtype: Value, shape: Value, *, fortran: bool) -> Array | None:
    """Return an array of numbers; None if its parts are not one's, or contradict each other."""
    kind, raw = parse_dtype(dtype), as_bytes(data)
    if kind is None or raw is None or not is_shape(shape):
        return None
    name, order = kind
    if prod(shape) * ITEM_SIZE[name] != len(raw):
        return None
    storage = Storage("", len(raw), None, byteorder=order, data=raw)
    return Array(name, tuple(shape), fortran, storage)


def is_shape(value: Value) -> bool:
    """Whether a value is a tuple of few sizes, none of them huge."""
    return (
        isinstance(value, tuple)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def as_bytes(data: Value) -> bytes | None:
    """Return raw bytes as any protocol writes them; Python 2 wrote a text."""
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if isinstance(data, str):
        try:
            return data.encode("latin1")
        except UnicodeEncodeError:
            return None
    return None
