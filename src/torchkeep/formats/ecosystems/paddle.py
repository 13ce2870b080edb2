"""PaddlePaddle's models: programs (`.pdmodel`) and their parameters (`.pdiparams`, `.pdparams`).

Layout of a program: a protobuf message, `ProgramDesc`. Its blocks (1) have a number (1), that of
the block around them (2), variables (3) with names (1), and operators (4) with types (3); a version
(4) follows them.

Layout of parameters of a program: one after the other, without names,

    u32        0, the version
    u64        the number of levels of detail; each is a u64 length and so many bytes
    u32        0, the version
    i32        the length of a protobuf message: the type (1) and the dims (2)
    elements   in one run, little endian

Parameters saved from Python are a pickle of arrays by name; in a dictionary of several such, each
array is a pair of Paddle's own name (`linear_0.w_0`) and the elements. The plain pickle's reader
reads it, and `is_paddle` tells it.

Limits: nodes of programs are counted, not read.

Source: PaddlePaddle/Paddle, paddle/fluid/framework/framework.proto, lod_tensor.cc,
tensor_util.cc; python/paddle/framework/io.py.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from torchkeep.contents import Array, Contents, Value
from torchkeep.errors import UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.described_only import not_loaded, tensor_at
from torchkeep.formats.ecosystems.protobuf import as_number, as_numbers, as_part, as_text, fields
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted, shortened

_PROGRAM = re.compile(rb"\n[\x80-\xff]{0,4}[\0-\x7f]\x08\0\x10\xff{9}\x01[\x1a\x22]")
"""A block with the number 0, inside of block -1, and then a variable or an operator."""
_PARAMETERS = re.compile(rb"\0{4}\0{8}\0{4}.\0\0\0\x08[\0-\x7f]([\x10\x12]|$)", re.DOTALL)
"""A first parameter without levels of detail, up to its dims."""

_NAME_TABLE = "StructuredToParameterName@@"
_SPLIT_TABLE = "UnpackBigParamInfor@@"
_PARAMETER_NAME = re.compile(r"[a-z]\w*_\d+\.\w+_\d+")
_MOST_DIMENSIONS = 64
_MOST_DESC_NBYTES = 1 << 10

_DTYPES = {
    0: "bool",
    1: "int16",
    2: "int32",
    3: "int64",
    4: "float16",
    5: "float32",
    6: "float64",
    20: "uint8",
    21: "int8",
    22: "bfloat16",
    23: "complex64",
    24: "complex128",
    32: "float8_e4m3fn",
    33: "float8_e5m2",
    36: "uint16",
    37: "uint32",
    38: "uint64",
}
"""PyTorch's name of each element type."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a program or as its parameters do."""
    del nbytes
    return bool(_PROGRAM.match(head) or _PARAMETERS.match(head))


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the program, or the parameters, are. Elements are not read."""
    cursor = Cursor.over(file, limits)
    facts: dict[str, str] = {}
    root: Value = None
    if file.read_at(0, 1) == b"\n":
        kind = _read_program(cursor, facts)
    else:
        root = _read_parameters(file, cursor, limits)
        kind = f"PaddlePaddle parameters: {counted(len(root), 'tensor')} without names"
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=root,
        metadata=facts,
        kind=kind,
        problem=not_loaded("a PaddlePaddle model"),
    )


def is_paddle(root: Value) -> bool:
    """Whether what a pickle holds was written by `paddle.save`.

    It is told by a table of its own, or by names of parameters that no other program gives.
    """
    if not isinstance(root, dict):
        return False
    tables = (root, *(value for value in root.values() if isinstance(value, dict)))
    return any(
        _NAME_TABLE in table
        or _SPLIT_TABLE in table
        or (bool(table) and all(map(_is_named_array, table.values())))
        for table in tables
    )


def _is_named_array(value: Value) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[1], Array):
        return False
    return isinstance(value[0], str) and _PARAMETER_NAME.fullmatch(value[0]) is not None


def named_paddle(contents: Contents) -> Contents:
    """Return the description of such a pickle under PaddlePaddle's name."""
    own = (_NAME_TABLE, _SPLIT_TABLE)
    items = {key: item for key, item in contents.root.items() if key not in own}
    tables = [items, *(item for item in items.values() if isinstance(item, dict))]
    num_values = sum(not isinstance(item, dict) for table in tables for item in table.values())
    kind = f"PaddlePaddle parameters: {counted(num_values, 'value')}"
    return replace(contents, container=FORMAT.name, kind=kind)


def _read_program(cursor: Cursor, facts: dict[str, str]) -> str:
    """Return what a program is in a few words, and add to the facts."""
    num_blocks = num_variables = 0
    operators: Counter[str] = Counter()
    for number, value in fields(cursor):
        if number == 1:
            num_blocks += 1
            for inner, part in fields(as_part(value)):
                num_variables += inner == 3
                if inner == 4:
                    operators.update(_operator_type(as_part(part)))
        elif number == 4:
            versions = [as_number(part) for inner, part in fields(as_part(value)) if inner == 1]
            facts["version"] = str(versions[-1] if versions else 0)
    shown = ", ".join(f"{count:,} {shortened(name)}" for name, count in operators.most_common(20))
    facts |= {"blocks": str(num_blocks), "operators": shown}
    parts = (counted(operators.total(), "operator"), counted(num_variables, "variable"))
    return f"PaddlePaddle program: {', '.join(parts)}"


def _operator_type(message: Cursor) -> list[str]:
    return [as_text(value, 100) for number, value in fields(message) if number == 3]


def _read_parameters(file: Readable, cursor: Cursor, limits: Limits) -> dict[str, Value]:
    tensors: dict[str, Value] = {}
    while cursor.remaining:
        limits.check("records", len(tensors))
        name = str(len(tensors))
        version = cursor.number(4)
        for _ in range(cursor.count(8, 8)):
            cursor.skip(cursor.number(8))
        if version or cursor.number(4):
            raise UnsupportedContent(f"parameter {name} is of a newer version")
        kind, shape = _read_desc(cursor)
        if kind not in _DTYPES:
            raise UnsupportedContent(f"parameter {name} has an unknown type {kind}")
        entry = tensor_at(file, name, _DTYPES[kind], shape, cursor.position)
        cursor.skip(entry.nbytes)
        tensors[name] = entry
    return tensors


def _read_desc(cursor: Cursor) -> tuple[int, tuple[int, ...]]:
    """Return a parameter's type and shape."""
    nbytes = cursor.number(4)
    if nbytes > _MOST_DESC_NBYTES:
        raise UnsupportedContent(f"a parameter is described in {nbytes:,} bytes")
    kind = 0
    shape: tuple[int, ...] = ()
    for number, value in fields(cursor.part(nbytes)):
        if number == 1:
            kind = as_number(value, 32)
        elif number == 2:
            shape += tuple(as_numbers(value, _MOST_DIMENSIONS))
    return kind, shape


FORMAT = Format("paddle", sniff, describe)
