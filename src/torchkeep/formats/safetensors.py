"""Safetensors: a length, a JSON header, the tensors.

Layout:

    8 bytes    N, the header's length, little endian, at most 100,000,000
    N bytes    JSON: {"<name>": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
               "__metadata__": {"<key>": "<text>"}}; starts with `{`, may be padded with spaces
    the rest   the tensors, little endian, C order, without holes, offsets counted from here

Limits: the dtypes F6_E2M3 and F6_E3M2 have no PyTorch type, and F4 has one only where each row is
made of pairs. Such tensors are described under the file's own names, and can't be loaded.

Source: huggingface/safetensors, README.md and safetensors/src/tensor.rs.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torchkeep.contents import (
    FOREIGN_BITS,
    ITEM_SIZE,
    Contents,
    Storage,
    TensorEntry,
    contiguous_stride,
)
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.format import Format
from torchkeep.formats.plain_json import parse_json
from torchkeep.pickles.limits import Limits

MAX_HEADER_NBYTES = 100_000_000
_MOST_DIMENSIONS = 1_000
_LONGEST_SHOWN = 200
"""Characters of a name in a message."""

DTYPES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
"""PyTorch's name for the dtypes of the format that it has."""

_FOREIGN = frozenset({"F6_E2M3", "F6_E3M2"})
"""The other ones."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether a plausible header length and a JSON object stand at the start."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= MAX_HEADER_NBYTES and nbytes >= 10


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the file holds. Only its header is read."""
    header_nbytes = int.from_bytes(file.read_at(0, 8), "little")
    limits.check("header_nbytes", header_nbytes)
    header = _parse_header(file.read_at(8, header_nbytes))
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DamagedFile("the header's __metadata__ is not a table of texts")
    start = 8 + header_nbytes
    root = {name: _entry(name, row, start, file) for name, row in header.items()}
    _check_layout(root, file.start + start, file.start + file.nbytes)
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=root,
        metadata=metadata,
    )


def _parse_header(data: bytes) -> dict[str, Any]:
    try:
        header = parse_json(data)
    except DamagedFile as error:
        raise DamagedFile(f"the header {error.problem.removeprefix('it ')}") from None
    if not isinstance(header, dict):
        raise DamagedFile("the header is no JSON object")
    return header


_FIELDS = {"dtype", "shape", "data_offsets"}


def _entry(name: str, row: object, start: int, file: Readable) -> TensorEntry:
    tensor = f"tensor {name[:_LONGEST_SHOWN]!r}"
    if not isinstance(row, dict) or not row.keys() >= _FIELDS:
        raise DamagedFile(f"{tensor} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str):
        raise DamagedFile(f"{tensor} has a dtype that is no text")
    if dtype not in DTYPES and dtype not in _FOREIGN:
        kind = dtype[:_LONGEST_SHOWN]
        raise UnsupportedContent(
            f"{tensor} has dtype {kind!r}, which is none of the format's",
            advice="A newer torchkeep may know it.",
        )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise DamagedFile(f"{tensor} has a broken shape or broken offsets")
    name_in_torch, shape = _in_torch(dtype, shape)
    if prod(shape) * FOREIGN_BITS.get(name_in_torch, 0) % 8:
        raise DamagedFile(f"{tensor} ends within a byte")
    begin, end = offsets
    entry = TensorEntry(
        dtype=name_in_torch,
        shape=tuple(shape),
        stride=contiguous_stride(tuple(shape)),
        storage=Storage(name, end - begin, file.start + start + begin, path=file.source),
    )
    if end < begin or entry.nbytes != end - begin:
        raise DamagedFile(
            f"{tensor} has {end - begin} bytes, and its shape {tuple(shape)} "
            f"of {_width(entry.dtype)} elements needs {entry.nbytes}"
        )
    return entry


def _in_torch(dtype: str, shape: list[int]) -> tuple[str, list[int]]:
    """Return dtype and shape as PyTorch tells them: a pair of F4 is one element there."""
    if dtype in _FOREIGN or (dtype == "F4" and (not shape or shape[-1] % 2)):
        return dtype.lower(), shape
    return DTYPES[dtype], [*shape[:-1], shape[-1] // 2] if dtype == "F4" else shape


def _width(dtype: str) -> str:
    return f"{FOREIGN_BITS[dtype]}-bit" if dtype in FOREIGN_BITS else f"{ITEM_SIZE[dtype]}-byte"


def _are_sizes(values: object) -> bool:
    """Whether these are few numbers of a sane size; the product of many would never be done."""
    if not isinstance(values, list) or len(values) > _MOST_DIMENSIONS:
        return False
    # `all` would take twice as long, and a file may have 100,000 tensors.
    for value in values:  # noqa: SIM110
        if type(value) is not int or not 0 <= value < 1 << 63:
            return False
    return True


def _check_layout(root: dict[str, TensorEntry], start: int, file_nbytes: int) -> None:
    """Raise unless the tensors fill the file from the header to the end, one after the other."""
    ranges = sorted(
        (entry.storage.offset or 0, entry.storage.nbytes, name) for name, entry in root.items()
    )
    position = start
    for offset, nbytes, name in ranges:
        if offset != position:
            problem = "overlaps with another" if offset < position else "leaves a hole before it"
            raise DamagedFile(f"tensor {name[:_LONGEST_SHOWN]!r} {problem}")
        position += nbytes
    if position > file_nbytes:
        raise DamagedFile(
            f"the file is truncated: its tensors need {position} bytes, and it has {file_nbytes}",
            advice="Copy or download it again.",
        )
    if position < file_nbytes:
        raise DamagedFile(f"{file_nbytes - position} bytes follow the last tensor")


FORMAT = Format("safetensors", sniff, describe)
