"""Sample inputs and what a model made of them, as they are kept in a file's metadata.

The text under `torchkeep.samples` is one JSON object:

    {"version": 1, "device": "cpu", "dtype": "float32", "preprocess": "",
     "samples": [{"args": [<node>, ...], "kwargs": {"<name>": <node>, ...},
                  "outputs": {"<name>": <tensor>, ...}}, ...]}

    <tensor>  {"$": "tensor", "dtype": "float32", "shape": [2, 3], "data": "<base64>"}
    <node>    a tensor, null, true, false, a number, a text, a list of nodes,
              {"$": "tuple", "items": [...]} or {"$": "dict", "items": {"<name>": <node>, ...}}

The base64 is that of the tensor's elements in C order, little endian. All tensors together have at
most `MAX_NBYTES`, and there are at most `MAX_SAMPLES`. A file may come from anyone: sizes are
compared before anything is decoded, and no element type is taken but those in `DTYPES`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torchkeep.contents import ITEM_SIZE
from torchkeep.errors import DamagedFile
from torchkeep.formats.plain_json import parse_json
from torchkeep.wording import counted, printable

MAX_NBYTES = 4 << 20
"""Bytes of all tensors of a file's samples together. Metadata is read whole by every reader."""

MAX_SAMPLES = 1000
"""Samples of a file. A model is run on each of them, which a few bytes should not make last."""

_MAX_TEXT = 4 * MAX_NBYTES
"""Characters of the text: a third more for base64, and as much again for the rest."""

DTYPES = frozenset(
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 "
    "complex64 complex128".split()
)
"""Element types that are stored, by PyTorch's names."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class SampleTensor:
    """A tensor of a sample, bytes and all."""

    dtype: str
    """PyTorch's name of the element type, one of `DTYPES`."""
    shape: tuple[int, ...]
    """Its sizes."""
    data: bytes
    """Its elements in C order, little endian."""

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


Node = Any
"""A `SampleTensor`, a plain value, or a list, tuple or dict of them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model was called with, and what it returned."""

    args: tuple[Node, ...]
    """The arguments without names."""
    kwargs: dict[str, Node]
    """Those with names."""
    outputs: dict[str, SampleTensor]
    """The tensors of what it returned, by where they stand in that; a single one has no name."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a file, and how their outputs were made."""

    samples: tuple[Sample, ...]
    """The samples, one or more."""
    device: str
    """The kind of device that the model was on: `cpu`, `cuda`."""
    dtype: str
    """The element type of the model's first floating-point parameter."""
    preprocess: str
    """What the inputs went through before the model, by name; empty if it was called with them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(len(tensor.data) for sample in self.samples for tensor in _tensors_of(sample))

    def __str__(self) -> str:
        first = self.samples[0]
        inputs, outputs = _listed(_tensors_in([*first.args, first.kwargs])), first.outputs.values()
        text = f"{counted(len(self.samples), 'sample')} with {'its' if self._is_one else 'their'} "
        text += f"outputs, {inputs} -> {_listed(outputs)}"
        text += "" if self._are_alike else ", others of other shapes"
        return f"{text}, preprocessed by {self.preprocess}" if self.preprocess else text

    @property
    def _is_one(self) -> bool:
        return len(self.samples) == 1

    @property
    def _are_alike(self) -> bool:
        return len({tuple(map(str, _tensors_of(sample))) for sample in self.samples}) == 1


def summary(text: str) -> str:
    """Return in one line what the samples of a file are, or that they can't be read."""
    try:
        return printable(str(decode_samples(text)))
    except DamagedFile as problem:
        return printable(str(problem))


def _tensors_of(sample: Sample) -> Iterator[SampleTensor]:
    yield from _tensors_in([*sample.args, sample.kwargs, sample.outputs])


def _tensors_in(node: Node) -> Iterator[SampleTensor]:
    if isinstance(node, SampleTensor):
        yield node
    elif isinstance(node, list | tuple | dict):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _tensors_in(item)


def _listed(tensors: Any) -> str:
    names = list(map(str, tensors))
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "no tensors"


# --- Writing -----------------------------------------------------------------------------------


def encode_samples(samples: Samples) -> str:
    """Return the text that stands for the samples; the same samples give the same text.

    Raises:
        TypeError: a value is of a kind that is not stored.
        ValueError: a number is infinite or not a number, which JSON lacks.
    """
    table = {
        "version": _VERSION,
        "device": samples.device,
        "dtype": samples.dtype,
        "preprocess": samples.preprocess,
        "samples": [
            {
                "args": [_encode(item) for item in sample.args],
                "kwargs": {name: _encode(item) for name, item in sample.kwargs.items()},
                "outputs": {name: _encode(item) for name, item in sample.outputs.items()},
            }
            for sample in samples.samples
        ],
    }
    return json.dumps(table, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _encode(node: Node) -> Any:
    if isinstance(node, SampleTensor):
        data = base64.b64encode(node.data).decode("ascii")
        return {"$": "tensor", "dtype": node.dtype, "shape": list(node.shape), "data": data}
    if isinstance(node, list):
        return [_encode(item) for item in node]
    if isinstance(node, tuple):
        return {"$": "tuple", "items": [_encode(item) for item in node]}
    if isinstance(node, dict):
        return {"$": "dict", "items": {name: _encode(item) for name, item in node.items()}}
    return node


# --- Reading -----------------------------------------------------------------------------------


def decode_samples(text: str) -> Samples:
    """Return the samples that a text stands for.

    Raises:
        DamagedFile: it is longer than ours are, no such text, or its tensors are of a wrong size or
            type, or larger than `MAX_NBYTES` together.
    """
    try:
        if len(text) > _MAX_TEXT:
            raise _Wrong(f"they take {len(text):,} characters, and {_MAX_TEXT:,} are allowed")
        return _Decoder().samples(parse_json(text))
    except (_Wrong, DamagedFile) as problem:
        reason = problem.problem if isinstance(problem, DamagedFile) else str(problem)
    except RecursionError:
        reason = "they are nested too deeply"
    raise DamagedFile(
        f"its stored samples can't be read: {reason}", advice="Copy or download the file again."
    )


class _Wrong(ValueError):
    """A part of the text is not what is written there."""


class _Decoder:
    def __init__(self) -> None:
        self.room = MAX_NBYTES

    def samples(self, table: Any) -> Samples:
        version = table.get("version") if isinstance(table, dict) else None
        if version != _VERSION:
            raise _Wrong(f"they have no version {_VERSION}; a newer torchkeep may know them")
        words = [_of(str, table, name) for name in ("device", "dtype", "preprocess")]
        if words[1] not in ITEM_SIZE:
            raise _Wrong(f"their model is of type {words[1][:40]!r}")
        items = _of(list, table, "samples")
        if not 0 < len(items) <= MAX_SAMPLES:
            raise _Wrong(f"there are {len(items):,}" if items else "there are none")
        samples = tuple(map(self._sample, items))
        return Samples(samples, *words)

    def _sample(self, table: Any) -> Sample:
        args = tuple(map(self._node, _of(list, table, "args")))
        kwargs = {name: self._node(item) for name, item in _of(dict, table, "kwargs").items()}
        outputs = {name: self._tensor(item) for name, item in _of(dict, table, "outputs").items()}
        if not outputs:
            raise _Wrong("a sample has no outputs")
        return Sample(args, kwargs, outputs)

    def _node(self, node: Any) -> Node:
        if isinstance(node, list):
            return [self._node(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node.get("$")
        if kind == "tuple":
            return tuple(self._node(item) for item in _of(list, node, "items"))
        if kind == "dict":
            return {name: self._node(item) for name, item in _of(dict, node, "items").items()}
        return self._tensor(node)

    def _tensor(self, node: Any) -> SampleTensor:
        dtype, shape, data = (
            _of(str, node, "dtype"),
            _of(list, node, "shape"),
            _of(str, node, "data"),
        )
        if node.get("$") != "tensor" or dtype not in DTYPES:
            raise _Wrong(f"there is a tensor of type {dtype[:40]!r}")
        nbytes = self._nbytes(dtype, shape)
        if len(data) != -(-nbytes // 3) * 4:
            raise _Wrong(f"a tensor of {nbytes:,} bytes has {len(data):,} characters")
        return SampleTensor(dtype, tuple(shape), _bytes(data, nbytes, dtype))

    def _nbytes(self, dtype: str, shape: list[Any]) -> int:
        """Return the size of a tensor, and count it."""
        if len(shape) > 64 or not all(
            type(size) is int and 0 <= size <= MAX_NBYTES for size in shape
        ):
            raise _Wrong("a tensor has an impossible shape")
        # An empty tensor has strides as well, and those of [0, 2**22, 2**22, 2**22] overflow.
        if prod(max(size, 1) for size in shape) * ITEM_SIZE[dtype] > MAX_NBYTES:
            raise _Wrong(f"a tensor has more than {MAX_NBYTES:,} bytes")
        nbytes: int = prod(shape) * ITEM_SIZE[dtype]
        self.room -= nbytes
        if self.room < 0:
            raise _Wrong(f"they have more than {MAX_NBYTES:,} bytes together")
        return nbytes


def _bytes(data: str, nbytes: int, dtype: str) -> bytes:
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):  # ValueError: a character outside of ASCII
        raise _Wrong("a tensor's elements are no base64") from None
    if len(decoded) != nbytes:
        raise _Wrong(f"a tensor of {nbytes:,} bytes has {len(decoded):,}")
    if dtype == "bool" and not set(decoded) <= {0, 1}:
        raise _Wrong("a bool is neither 0 nor 1")
    return decoded


def _of(kind: type, table: Any, name: str) -> Any:
    value = table.get(name) if isinstance(table, dict) else None
    if type(value) is not kind:
        raise _Wrong(f"{name!r} is missing or of a wrong kind")
    return value
