"""A state as named tensors and JSON, and back without loss.

JSON has no tuples, no keys but strings, no NaN, and readers that round large integers. What it
lacks is written as an object with a `$` that tells the kind:

    {"$": "tensor", "name": "optimizer/state/0/exp_avg"}
    {"$": "tensor", "name": "model/spectrum", "pairs": true}     complex128, as [..., 2] float64
    {"$": "tuple", "items": [0.9, 0.999]}
    {"$": "dict", "items": [[0, {...}], [1, {...}]]}         keys that are not strings
    {"$": "float", "bits": "7ff8000000000000"}               NaN and the infinities
    {"$": "int", "hex": "0x20000000000001"}                  beyond 2^53
    {"$": "text", "hex": "eda080"}                           with half of a surrogate pair

Everything else stands as it is, so that a person can read the result. A value that has no
lossless form here is refused by its place; nothing is turned into something similar.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from torchkeep.errors import DamagedFile, SaveRefused
from torchkeep.files import digest
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu, torch_dtype
from torchkeep.writing.safetensors import is_utf8

State = dict[str, Any]
"""Nested dicts, tensors at the leaves, plain values elsewhere."""

JSON = Any
"""What `json` reads and writes."""

EXACT_INT = 1 << 53
"""Readers of JSON that keep numbers as doubles hold integers exactly up to here."""

_SEQUENCES: dict[str, type] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "size": torch.Size,
}
_MAPPINGS: dict[str, type] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_PAIRED = frozenset({torch.complex128, torch.complex32})
"""Dtypes that safetensors lacks, and has twice as many real numbers for."""

_KIND_OF = {kind: name for name, kind in (_SEQUENCES | _MAPPINGS).items()}
_CONTAINERS = frozenset({list, deque, *_KIND_OF})
_AS_THEY_ARE = frozenset({type(None), bool})


# --- Encoding ----------------------------------------------------------------------------------


def encode(state: object, place: str = "") -> tuple[dict[str, torch.Tensor], JSON]:
    """Return the tensors of `state` by name, and its structure as JSON that refers to them.

    A tensor's name is its place, as in `model/state_dict/fc.weight`. A tensor object that occurs
    at several places is named once. `place` is where the state stands in a larger one.

    Raises:
        SaveRefused: a value has no lossless form; the message names its place.
    """
    encoder = _Encoder()
    return encoder.tensors, encoder.encode(state, f"{place}/" if place else "")


def is_plain(value: object) -> bool:
    """Tell quickly that `encode` takes a value. It may take others as well."""
    if type(value) in _LEAVES or isinstance(value, torch.Tensor):
        return True
    if type(value) not in _CONTAINERS:
        return False
    parts: Iterable[object] = value  # type: ignore[assignment]
    if isinstance(value, dict):
        parts = (*value, *value.values())
    return all(type(part) in _LEAVES or is_plain(part) for part in parts)


class _Encoder:
    """Takes one state apart. A place is given as the text that the names below it begin with."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: dict[int, str] = {}
        self.named: list[torch.Tensor] = []  # kept, so that their ids stay theirs

    def encode(self, value: Any, prefix: str) -> JSON:
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind in _SCALARS:
            return _SCALARS[kind](value)
        if isinstance(value, torch.Tensor):
            return self.reference("tensor", value, prefix)
        if kind in _CONTAINERS:
            take_apart = self.mapping if isinstance(value, dict) else self.sequence
            return take_apart(value, prefix)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            return self.array(value, prefix, numpy)
        raise _refused(value, prefix)

    def reference(self, kind: str, tensor: torch.Tensor, prefix: str) -> dict[str, Any]:
        are_pairs = tensor.dtype in _PAIRED and tensor.layout == torch.strided
        name = self.names.get(id(tensor))
        if name is None:
            name = self.free_name(prefix[:-1] or "value")
            self.names[id(tensor)] = name
            self.named.append(tensor)
            self.tensors[name] = _pairs(tensor) if are_pairs else tensor
        node: dict[str, Any] = {"$": kind, "name": name}
        if are_pairs:
            node["pairs"] = True
        return node

    def free_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.tensors:
            count += 1
            name = f"{wanted}#{count}"
        return name

    def mapping(self, value: Mapping[Any, object], prefix: str) -> JSON:
        kind = _KIND_OF[type(value)]
        if kind == "dict" and "$" not in value and all(map(_is_plain_text, value)):
            return {
                # Flags are many: a place for each, and a call, would double the time.
                key: item if type(item) in _AS_THEY_ARE else self.encode(item, f"{prefix}{key}/")
                for key, item in value.items()
            }
        items = [
            [self.encode(key, prefix), self.encode(item, f"{prefix}{key}/")]
            for key, item in value.items()
        ]
        return {"$": kind, "items": items}

    def sequence(self, value: Iterable[object], prefix: str) -> JSON:
        items: list[JSON]
        if all(type(item) is int for item in value):  # shapes, and the numbers of parameters
            items = [_encode_int(item) for item in value]  # type: ignore[arg-type]
        else:
            items = [self.encode(item, f"{prefix}{index}/") for index, item in enumerate(value)]
        if isinstance(value, list):
            return items
        if isinstance(value, deque):
            return {"$": "deque", "items": items, "maxlen": value.maxlen}
        return {"$": _KIND_OF[type(value)], "items": items}

    def array(self, value: Any, prefix: str, numpy: Any) -> JSON:
        scalar = isinstance(value, numpy.generic)
        try:
            tensor = torch.from_numpy(numpy.array(value))
        except TypeError:  # strings, dates, objects
            raise _refused(value, prefix) from None
        return {**self.reference("numpy", tensor, prefix), "scalar": scalar}


def _pairs(tensor: torch.Tensor) -> torch.Tensor:
    """Return complex numbers as `[..., 2]` real ones, in the same memory if it holds them so."""
    return torch.view_as_real(tensor.detach().resolve_conj().resolve_neg())


def _is_plain_text(value: object) -> bool:
    return type(value) is str and is_utf8(value)


def _encode_text(value: str) -> JSON:
    """Return a text that readers of JSON take: file names may hold bytes that are no UTF-8."""
    if is_utf8(value):
        return value
    return {"$": "text", "hex": value.encode("utf-8", "surrogatepass").hex()}


def _encode_int(value: int) -> JSON:
    return value if abs(value) <= EXACT_INT else {"$": "int", "hex": hex(value)}


def _encode_float(value: float) -> JSON:
    return value if math.isfinite(value) else {"$": "float", "bits": struct.pack(">d", value).hex()}


_SCALARS: dict[type, Callable[[Any], JSON]] = {
    str: _encode_text,
    int: _encode_int,
    float: _encode_float,
    complex: lambda value: {
        "$": "complex",
        "bits": struct.pack(">dd", value.real, value.imag).hex(),
    },
    bytes: lambda value: {"$": "bytes", "hex": value.hex()},
    torch.dtype: lambda value: {"$": "dtype", "name": dtype_name(value)},
    torch.device: lambda value: {"$": "device", "name": str(value)},
}

_LEAVES = frozenset({torch.Tensor, torch.nn.Parameter, *_AS_THEY_ARE, *_SCALARS})


def _refused(value: object, prefix: str) -> SaveRefused:
    kind = type(value)
    return SaveRefused(
        f"{prefix[:-1] or 'the value'} is a {kind.__module__}.{kind.__qualname__}, "
        "which can't be kept as data",
        advice="Keep plain values and tensors, or give the object state_dict() and "
        "load_state_dict().",
    )


# --- Decoding ----------------------------------------------------------------------------------


def decode(tensors: Mapping[str, torch.Tensor], structure: JSON) -> Any:
    """Return the state that `encode` took apart; its tensors are those of `tensors`.

    Raises:
        DamagedFile: the structure names a tensor that is not there, or is no structure.
    """
    if isinstance(structure, list):
        return [decode(tensors, item) for item in structure]
    if not isinstance(structure, dict):
        return structure
    if "$" not in structure:
        return {key: decode(tensors, item) for key, item in structure.items()}
    try:
        return _decode_tagged(tensors, structure)
    except RecursionError:
        raise
    except (
        *(AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError),
        struct.error,
    ) as error:
        raise DamagedFile(f"the state can't be put together ({error!r})") from error


def _decode_tagged(tensors: Mapping[str, torch.Tensor], node: dict[str, Any]) -> Any:
    kind = node["$"]
    if kind == "tensor":
        return _referred(tensors, node)
    if kind == "numpy":
        array = _referred(tensors, node).numpy().copy()
        return array[()] if node["scalar"] else array
    if kind in _MAPPINGS:
        return _MAPPINGS[kind](
            {decode(tensors, key): decode(tensors, item) for key, item in node["items"]}
        )
    if kind in _SEQUENCES:
        return _SEQUENCES[kind]([decode(tensors, item) for item in node["items"]])
    if kind == "deque":
        return deque((decode(tensors, item) for item in node["items"]), node["maxlen"])
    return _DECODERS[kind](node)


def _referred(tensors: Mapping[str, torch.Tensor], node: dict[str, Any]) -> torch.Tensor:
    tensor = tensors[node["name"]]
    return torch.view_as_complex(tensor) if node.get("pairs") else tensor


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text": lambda node: bytes.fromhex(node["hex"]).decode("utf-8", "surrogatepass"),
    "int": lambda node: int(node["hex"], 16),
    "float": lambda node: struct.unpack(">d", bytes.fromhex(node["bits"]))[0],
    "complex": lambda node: complex(*struct.unpack(">dd", bytes.fromhex(node["bits"]))),
    "bytes": lambda node: bytes.fromhex(node["hex"]),
    "dtype": lambda node: torch_dtype(node["name"]),
    "device": lambda node: torch.device(node["name"]),
}


# --- Comparing ---------------------------------------------------------------------------------


def fingerprint(state: object) -> str:
    """Return a digest of every bit of `state`: names, values, dtypes, shapes, tensor bytes.

    Two states have the same one only if they are equal bit for bit; 0.0 and -0.0 differ, a NaN
    equals itself.
    """
    tensors, structure = encode(state)
    lines = [f"{name} {_tensor_digest(tensor)}" for name, tensor in sorted(tensors.items())]
    return digest("\n".join([json.dumps(structure, sort_keys=True), *lines]).encode())


def _tensor_digest(tensor: torch.Tensor) -> str:
    data = digest(bytes_of(plain_on_cpu(tensor)))
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)} {data}"
