"""What makes a state dict a whole model: the text under the metadata key `torchkeep.structure`.

The text is a JSON object:

    version     1
    root        the model, as a value
    nodes       a list; values refer to it by position, so that what is shared stays shared
    sources     the source text of the user's classes by dotted name: for the record, never run
    libraries   the versions of the packages that the classes are from

A value is null, a boolean, a number, a text, or `[n]`: the n-th node. A node is an object, told by
the key that it must have:

    list, tuple, set, frozenset     values
    dict                            pairs of values
    mapping                         a class's dotted name; with `pairs` and `attributes`
    global                          a module and a name
    object                          what would be called, a value; with `args`, and where there
                                    are any `kwargs`, `state`, `items`, `pairs`
    tensor                          a name in the state dict; with `parameter`, `requires_grad`
    data                            a tensor that is no part of the state dict, such as a
                                    non-persistent buffer: its elements in C order, little endian,
                                    zlib, base64; with `dtype`, `shape` and the flags of `tensor`
    array                           the same of a NumPy array, without flags
    float, complex, bytes           what JSON has no number or text for

So a module is what a pickle of it would be, an `Object` with its attributes, and whatever reads
pickled models reads this. The classes are names; to read them imports nothing.

Limits: tensors under `data` may have `MAX_DATA_NBYTES` in all.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torchkeep.contents import (
    ITEM_SIZE,
    ROW_BITS,
    Array,
    Contents,
    DictObject,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
    nbytes_of,
)
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.metadata import STRUCTURE
from torchkeep.formats.plain_json import parse_json
from torchkeep.pickles.keys import Keys
from torchkeep.pickles.limits import DEFAULT_LIMITS

VERSION = 1
MAX_DATA_NBYTES = 256 << 20
"""Bytes that the tensors outside of the state dict may have."""

_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_KINDS = {kind: name for name, kind in _SEQUENCES.items()}
_ZLIB_LEVEL = 6


@dataclass(frozen=True, slots=True)
class Structure:
    """A whole model, its tensors apart."""

    root: Object
    """The model: an object whose state is its attributes, as in a pickle."""
    sources: dict[str, str] = field(default_factory=dict)
    """Source text of the user's classes by dotted name."""
    libraries: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that its classes are from, by name."""


def write_structure(structure: Structure) -> str:
    """Return the text of a structure.

    A tensor whose storage has `data` is stored in the text; of any other, the storage's key is its
    name in the state dict.
    """
    writer = _Writer()
    root = writer.value(structure.root)
    table = {
        "version": VERSION,
        "root": root,
        "nodes": writer.nodes,
        "sources": structure.sources,
        "libraries": structure.libraries,
    }
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"))


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}

    def value(self, value: Value) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float and math.isfinite(value):
            return value
        place = self._places.get(id(value))
        if place is None:
            place = self._places[id(value)] = len(self.nodes)
            self.nodes.append({})  # what refers back to it finds it
            self.nodes[place] = self._node(value)
        return [place]

    def _node(self, value: Value) -> dict[str, Any]:
        if isinstance(value, TensorEntry):
            return _tensor_node(value)
        if isinstance(value, Array):
            return {"array": _packed(value.storage), **_kind(value)}
        if isinstance(value, Global):
            return {"global": [value.module, value.name]}
        if isinstance(value, Object):
            return self._object(value)
        if isinstance(value, DictObject):
            attributes = self.value(value.attributes) if value.attributes else None
            return {
                "mapping": value.class_path,
                "pairs": self._pairs(value),
                "attributes": attributes,
            }
        if isinstance(value, dict):
            return {"dict": self._pairs(value)}
        if type(value) in _KINDS:
            return {_KINDS[type(value)]: [self.value(item) for item in value]}
        return _scalar_node(value)

    def _object(self, value: Object) -> dict[str, Any]:
        parts: dict[str, Any] = {"object": self.value(value.callee)}
        parts["args"] = [self.value(item) for item in value.args]
        if value.kwargs:
            parts["kwargs"] = self._pairs(value.kwargs)
        if value.state is not None:
            parts["state"] = self.value(value.state)
        if value.items:
            parts["items"] = [self.value(item) for item in value.items]
        if value.pairs:
            parts["pairs"] = self._pairs(value.pairs)
        return parts

    def _pairs(self, table: Mapping[Value, Value]) -> list[Any]:
        return [[self.value(key), self.value(item)] for key, item in table.items()]


def _tensor_node(entry: TensorEntry) -> dict[str, Any]:
    flags = {"parameter": entry.is_parameter, "requires_grad": entry.requires_grad}
    if entry.storage.data is None:
        return {"tensor": entry.storage.key, **flags}
    return {"data": _packed(entry.storage), **_kind(entry), **flags}


def _packed(storage: Storage) -> str:
    return base64.b64encode(zlib.compress(storage.data or b"", _ZLIB_LEVEL)).decode()


def _kind(value: TensorEntry | Array) -> dict[str, Any]:
    return {"dtype": value.dtype, "shape": list(value.shape)}


def _scalar_node(value: Value) -> dict[str, Any]:
    if isinstance(value, float):
        return {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__qualname__} is no inert value")


def read_structure(
    contents: Contents, tensors: Mapping[str, TensorEntry] | None = None
) -> Structure | None:
    """Return the structure that a file of ours has; None if it has none.

    Args:
        contents: the file.
        tensors: its state dict, with the names that it left out; without it, its tensors by name.

    Raises:
        DamagedFile: it is broken, or names a tensor that is not there.
    """
    text = contents.metadata.get(STRUCTURE)
    if text is None:
        return None
    try:
        return _parse(text, contents.tensors if tensors is None else tensors)
    except DamagedFile as problem:
        raise _broken(problem.problem).in_file(contents.path) from None
    except RecursionError:
        raise _broken("it is nested too deeply").in_file(contents.path) from None
    except (KeyError, IndexError) as error:
        raise _broken(f"{error} is missing").in_file(contents.path) from None
    except (TypeError, ValueError, AttributeError, binascii.Error, zlib.error) as error:
        raise _broken(str(error)).in_file(contents.path) from None


def _broken(why: str) -> DamagedFile:
    return DamagedFile(
        f"the structure of its model can't be read ({why})",
        advice="Copy or download the file again.",
    )


def _parse(text: str, tensors: Mapping[str, TensorEntry]) -> Structure:
    table = parse_json(text)
    if table["version"] != VERSION:
        raise ValueError(f"its version is {table['version']!r}, and {VERSION} is known")
    root = _Reader(table["nodes"], tensors).value(table["root"])
    if not isinstance(root, Object):
        raise ValueError("its root is no object")
    return Structure(root, _texts(table["sources"]), _texts(table["libraries"]))


def _texts(table: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(item, str) for item in table.values()):
        raise ValueError("a text is none")
    return dict(table)


class _Reader:
    """Makes inert values of nodes; what can hold itself is known before it is filled."""

    def __init__(self, nodes: list[dict[str, Any]], tensors: Mapping[str, TensorEntry]) -> None:
        self.nodes = nodes
        self.tensors = tensors
        self.made: dict[int, Value] = {}
        self.open: set[int] = set()
        self.keys = Keys(DEFAULT_LIMITS)
        self.data_nbytes = 0

    def value(self, value: Any) -> Value:
        if not isinstance(value, list):
            if isinstance(value, dict):
                raise ValueError("a value is an object")
            return value
        (place,) = value
        if type(place) is not int or place < 0:
            raise ValueError("a place is no number")
        if place not in self.made:
            if place in self.open:
                raise ValueError("a tuple or a set contains itself")
            self.open.add(place)
            self.made[place] = self._make(place, self.nodes[place])
        return self.made[place]

    def _values(self, values: Iterable[Any]) -> list[Value]:
        return [self.value(item) for item in values]

    def _make(self, place: int, node: dict[str, Any]) -> Value:
        kind = next((key for key in _MAKERS if key in node), "")
        if kind == "list":
            made: list[Value] = []
            self.made[place] = made
            made.extend(self._values(node[kind]))
            return made
        if kind in ("dict", "mapping"):
            return self._mapping(place, node)
        if kind == "object":
            return self._object(place, node)
        if kind in ("tuple", "set", "frozenset"):
            items = self._values(node[kind])
            if kind != "tuple":
                for item in items:
                    self.keys.check(item, items)
            return _SEQUENCES[kind](items)
        if kind == "tensor":
            return _flagged(self.tensors[node[kind]], node)
        if kind == "data":
            return _flagged(self._data(node[kind], node), node)
        if kind == "array":
            entry = self._data(node[kind], node)
            return Array(entry.dtype, entry.shape, False, entry.storage)
        return _scalar(kind, node)

    def _fill(self, table: dict[Value, Value], pairs: Iterable[Any]) -> None:
        for key, item in pairs:
            made = self.value(key)
            self.keys.check(made, table)
            table[made] = self.value(item)

    def _mapping(self, place: int, node: dict[str, Any]) -> dict[Value, Value]:
        if "dict" in node:
            table: dict[Value, Value] = {}
            self.made[place] = table
            self._fill(table, node["dict"])
            return table
        made = DictObject(_text(node["mapping"]))
        self.made[place] = made
        self._fill(made, node["pairs"])
        made.attributes = self.value(node["attributes"]) or {}
        if not isinstance(made.attributes, dict):
            raise ValueError("attributes are no table")
        return made

    def _object(self, place: int, node: dict[str, Any]) -> Object:
        made = Object(None, ())
        self.made[place] = made
        made.callee = self.value(node["object"])
        made.args = tuple(self._values(node["args"]))
        self._fill(made.kwargs, node.get("kwargs", ()))
        made.state = self.value(node.get("state"))
        made.items.extend(self._values(node.get("items", ())))
        self._fill(made.pairs, node.get("pairs", ()))
        return made

    def _data(self, packed: str, node: dict[str, Any]) -> TensorEntry:
        dtype, shape = _text(node["dtype"]), tuple(node["shape"])
        if dtype not in ITEM_SIZE or dtype in ROW_BITS:
            raise ValueError(f"no tensor of dtype {dtype} is stored so")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("a size is no number")
        nbytes = nbytes_of(dtype, shape)
        self.data_nbytes += nbytes
        if self.data_nbytes > MAX_DATA_NBYTES or prod(shape) >= 1 << 63:
            raise ValueError(f"its tensors take more than {MAX_DATA_NBYTES:,} bytes")
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(base64.b64decode(packed, validate=True), nbytes + 1)
        if len(data) != nbytes:
            raise ValueError(f"a tensor of {nbytes} bytes has others")
        storage = Storage("", nbytes, None, data=data)
        return TensorEntry(dtype, shape, contiguous_stride(shape), storage)


def _flagged(entry: TensorEntry, node: dict[str, Any]) -> TensorEntry:
    return replace(
        entry,
        is_parameter=node["parameter"] is True,
        requires_grad=node["requires_grad"] is True,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is none")
    return value


def _scalar(kind: str, node: dict[str, Any]) -> Value:
    if kind == "global":
        module, name = node[kind]
        return Global(_text(module), _text(name))
    if kind == "float":
        return float(_text(node[kind]))
    if kind == "complex":
        real, imag = node[kind]
        return complex(float.fromhex(real), float.fromhex(imag))
    if kind == "bytes":
        return base64.b64decode(node[kind], validate=True)
    raise ValueError("a node is of no known kind")


_MAKERS = (*_SEQUENCES, *"dict mapping object tensor data array global float complex bytes".split())
"""The keys that tell what a node is."""
