"""Calls that only make plain values, answered with those values.

Each entry is found by the dotted name of what the pickle calls. The functions here are ours:
nothing of the file's is imported or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torchkeep.contents import DictObject, Global, Object, Value
from torchkeep.pickles.arrays import numpy_frombuffer, numpy_scalar
from torchkeep.pickles.keys import Keys
from torchkeep.pickles.limits import DEFAULT_LIMITS
from torchkeep.pickles.pickled import Constructor


def _mapping(class_path: str) -> Constructor:
    def make(*args: Value) -> DictObject:
        result = DictObject(class_path)
        items = args[-1] if args else ()
        if isinstance(items, dict):
            result.update(items)
        elif isinstance(items, list | tuple):  # Python 2 wrote an OrderedDict as a list of pairs
            keys = Keys(DEFAULT_LIMITS)
            for key, value in items:
                keys.check(key, result)
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
    keys = Keys(DEFAULT_LIMITS)
    for member in members:
        keys.check(member, members)
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
        "numpy.core.multiarray.scalar": numpy_scalar,
        "numpy._core.multiarray.scalar": numpy_scalar,
        "numpy.core.numeric._frombuffer": numpy_frombuffer,
        "numpy._core.numeric._frombuffer": numpy_frombuffer,
    }
)
"""The calls that every pickle reader answers, by dotted name."""
