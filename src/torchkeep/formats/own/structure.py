"""The structure in a manifest of ours, put together as inert values: no torch is needed for it.

`checkpointing/state/encoding.py` describes it, writes it, and reads it back as live values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from torchkeep.contents import DictObject, Global, Value
from torchkeep.errors import DamagedFile

_SEQUENCES: dict[str, Callable[[list[Value]], Value]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "size": tuple,
    "deque": list,
}
_MAPPINGS: dict[str, str] = {
    "dict": "",
    "ordered": "collections.OrderedDict",
    "counter": "collections.Counter",
}
_SCALARS: dict[str, Callable[[dict[str, Any]], Value]] = {
    "int": lambda node: int(node["hex"], 16),
    "float": lambda node: struct.unpack(">d", bytes.fromhex(node["bits"]))[0],
    "complex": lambda node: complex(*struct.unpack(">dd", bytes.fromhex(node["bits"]))),
    "bytes": lambda node: bytes.fromhex(node["hex"]),
    "dtype": lambda node: Global("torch", str(node["name"])),
    "device": lambda node: str(node["name"]),
}


def inert(structure: Any, tensors: Mapping[str, Value]) -> Value:
    """Return the values that a structure describes.

    Args:
        structure: what `json` read.
        tensors: the tensors that it names; NumPy arrays are among them.

    Raises:
        DamagedFile: it is no structure, or names a tensor that is not there.
    """
    try:
        return _inert(structure, tensors)
    except RecursionError:
        raise DamagedFile("its structure is nested too deeply") from None
    except KeyError as error:
        raise DamagedFile(f"the state can't be put together ({error} is missing)") from None
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise DamagedFile(f"the state can't be put together ({error!r})") from None


def _inert(node: Any, tensors: Mapping[str, Value]) -> Value:
    if isinstance(node, list):
        return [_inert(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("$")
    if kind is None:
        return {key: _inert(item, tensors) for key, item in node.items()}
    if kind in ("tensor", "numpy"):
        return tensors[node["name"]]
    if kind in _SCALARS:
        return _SCALARS[kind](node)
    if kind in _MAPPINGS:
        return _mapping(kind, node["items"], tensors)
    return _SEQUENCES[kind]([_inert(item, tensors) for item in node["items"]])


def _mapping(kind: str, items: list[Any], tensors: Mapping[str, Value]) -> dict[Value, Value]:
    table: dict[Value, Value] = DictObject(_MAPPINGS[kind]) if _MAPPINGS[kind] else {}
    for key, item in items:
        table[_inert(key, tensors)] = _inert(item, tensors)
    return table
