"""Calls that only make plain values, answered with those values.

Each entry is found by the dotted name of what the pickle calls. The functions here are ours:
nothing of the file's is imported or run.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

from torchkeep.contents import DictObject, Global, Object, Value
from torchkeep.pickles.keys import check_key
from torchkeep.pickles.limits import DEFAULT_LIMITS
from torchkeep.pickles.machine import Constructor


def _mapping(class_path: str) -> Constructor:
    def make(*args: Value) -> DictObject:
        result = DictObject(class_path)
        items = args[-1] if args else ()
        if isinstance(items, dict):
            result.update(items)
        elif isinstance(items, list | tuple):  # Python 2 wrote an OrderedDict as a list of pairs
            for key, value in items:
                check_key(key, DEFAULT_LIMITS)
                result[key] = value
        elif not isinstance(items, Global | Object | None):  # a defaultdict's factory
            raise ValueError("made from something that is no mapping")
        return result

    return make


def _members(items: Value = ()) -> list[Value]:
    if not isinstance(items, list | tuple | set | frozenset | dict | str | bytes | bytearray):
        raise ValueError("made from something that has no members")
    return list(items)


def _set(items: Value = ()) -> set[Value]:
    members = _members(items)
    for member in members:
        check_key(member, DEFAULT_LIMITS)
    return set(members)


def _encode(text: Value, encoding: Value = "utf-8") -> bytes:
    """Return the bytes that protocol 2 writes as text: `_codecs.encode(text, "latin1")`."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise ValueError("only text in a plain encoding is decoded")
    return text.encode(encoding)


def _bytes(*args: Value) -> bytes:
    if not args:
        return b""
    return _encode(*args) if isinstance(args[0], str) else bytes(_members(args[0]))


def _bytearray(*args: Value) -> bytearray:
    return bytearray(_bytes(*args))


def _complex(real: Value = 0.0, imag: Value = 0.0) -> complex:
    if not isinstance(real, int | float) or not isinstance(imag, int | float):
        raise ValueError("a complex number of something that is no number")
    return complex(real, imag)


def _reconstructor(cls: Value, base: Value, state: Value) -> Object:
    """Return the object that protocols 0 and 1 make with `copyreg._reconstructor`."""
    made = Object(cls, ())
    if isinstance(state, dict):
        made.pairs.update(state)
    elif isinstance(state, list | tuple):
        made.items.extend(state)
    elif state is not None:
        made.args = (state,)
    del base  # `object`, or the plain type whose content `state` is
    return made


_NUMPY_CODES: Mapping[str, str] = MappingProxyType(
    {
        "b1": "?",
        "i1": "b",
        "u1": "B",
        "i2": "h",
        "u2": "H",
        "i4": "i",
        "u4": "I",
        "i8": "q",
        "u8": "Q",
        "f2": "e",
        "f4": "f",
        "f8": "d",
        "c8": "ff",
        "c16": "dd",
    }
)
"""NumPy's type codes and the same types in `struct`'s notation."""


def _numpy_scalar(dtype: Value, data: Value = None) -> Value:
    """Return the number that `numpy.core.multiarray.scalar(dtype, bytes)` makes.

    A scalar that is no number (a text, a date, a record) stays a recipe.
    """
    if isinstance(data, str):  # Python 2 wrote the bytes as a string
        data = data.encode("latin1")
    code = dtype.args[0] if isinstance(dtype, Object) and dtype.args else None
    if not isinstance(code, str) or code not in _NUMPY_CODES or not isinstance(data, bytes):
        return Object(Global("numpy.core.multiarray", "scalar"), (dtype, data))
    state = dtype.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    layout = (">" if order == ">" else "<") + _NUMPY_CODES[code]
    try:
        parts = struct.unpack(layout, data)
    except struct.error:
        raise ValueError(f"a NumPy scalar of type {code} in {len(data)} bytes") from None
    return parts[0] if code[0] != "c" else complex(*parts)


CONSTRUCTORS: Mapping[str, Constructor] = MappingProxyType(
    {
        "collections.OrderedDict": _mapping("collections.OrderedDict"),
        "collections.defaultdict": _mapping("collections.defaultdict"),
        "collections.Counter": _mapping("collections.Counter"),
        "builtins.dict": lambda *args: dict(_mapping("builtins.dict")(*args)),
        "builtins.list": _members,
        "builtins.tuple": lambda items=(): tuple(_members(items)),
        "builtins.set": _set,
        "builtins.frozenset": lambda items=(): frozenset(_set(items)),
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytearray,
        "builtins.complex": _complex,
        "_codecs.encode": _encode,
        "copyreg._reconstructor": _reconstructor,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
    }
)
"""The calls that every pickle reader answers, by dotted name."""
