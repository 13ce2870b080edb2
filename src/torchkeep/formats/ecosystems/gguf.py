"""GGUF: the models of llama.cpp and its relatives.

Layout, little endian, or big endian if that makes the version a small number:

    4 bytes    GGUF
    u32        the version: 1, 2 or 3
    u64        the number of tensors; u32 in version 1
    u64        the number of facts; u32 in version 1
    facts      each a text (the key), a u32 (the type) and a value; a text is a u64 length (u32 in
               version 1) and bytes; an array is the items' type, a u64 count (u32) and the items
    tensors    each a text (the name), a u32 (the number of dimensions), that many u64 (u32) with
               the fastest one first, a u32 (the type) and a u64 (where it starts in the data)
    the data   from the next multiple of `general.alignment`, or of 32

Limits: quantized tensors are named with their types; only plain ones have a place. A chat template
is a program in Jinja; it is searched for what reaches out of the template's sandbox.

Source: ggml-org/ggml, docs/gguf.md and src/gguf.cpp.
"""

from __future__ import annotations

import re
from collections import Counter
from math import prod

from torchkeep.contents import Contents, Finding, Value
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.described_only import check_shape, not_loaded, shown_shape, tensor_at
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted, shortened

_MAGIC = b"GGUF"
_ALIGNMENT = 32
_MOST_DIMENSIONS = 64
_LONGEST_NAME = 1 << 16
_LONGEST_VALUE = 200
_LONGEST_TEMPLATE = 1 << 20
_MOST_FACTS = 10_000
_MOST_SHOWN = 8

_NUMBERS: dict[int, tuple[int, bool]] = {
    0: (1, False),
    1: (1, True),
    2: (2, False),
    3: (2, True),
    4: (4, False),
    5: (4, True),
    10: (8, False),
    11: (8, True),
}
"""Bytes and sign of the types of whole numbers."""
_F32, _BOOL, _TEXT, _ARRAY = 6, 7, 8, 9
_REALS = {_F32: 4, 12: 8}

_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Name, elements of a block and bytes of a block of each tensor type."""

_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
"""PyTorch's name of the types that it has."""

_ESCAPES = re.compile(
    r"__(class|base|bases|mro|subclasses|globals|builtins|import|init|dict|code|func|self|"
    r"getattribute|reduce|reduce_ex)__|\|\s*attr\b|\\x5f|\\u005f"
)
"""What a template says that leaves its sandbox; chat templates have no use for any of it."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a GGUF model does."""
    del nbytes
    return head.startswith(_MAGIC)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the header says. The tensors are not read."""
    reading = _Reading(file, limits)
    reading.read()
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=reading.tensors,
        metadata=reading.facts,
        findings=tuple(reading.findings),
        kind=reading.kind(),
        problem=not_loaded("a GGUF model"),
    )


class _Reading:
    """A header that is being read, and what was read of it."""

    def __init__(self, file: Readable, limits: Limits) -> None:
        self.file = file
        self.limits = limits
        self.cursor = Cursor.over(file, limits)
        self.version = 0
        self.wide = 8
        """Bytes of a length or a count."""
        self.facts: dict[str, str] = {}
        self.alignment = _ALIGNMENT
        self.tensors: dict[str, Value] = {}
        self.types: Counter[str] = Counter()
        self.findings: list[Finding] = []

    def read(self) -> None:
        """Read the header to its end."""
        cursor = self.cursor
        cursor.skip(len(_MAGIC))
        self.version = cursor.number(4)
        if self.version & 0xFFFF == 0:
            self.version >>= 16
            self.version = (self.version & 0xFF) << 8 | self.version >> 8
            cursor.byteorder = "big"
        if self.version not in (1, 2, 3):
            raise UnsupportedContent(f"this is a GGUF model of version {self.version}")
        self.wide = 4 if self.version == 1 else 8
        num_tensors = cursor.count(self.wide, 2 * self.wide + 8)
        num_facts = cursor.count(self.wide, self.wide + 5)
        self.limits.check("records", max(num_tensors, num_facts))
        self.facts["version"] = f"{self.version}"
        for _ in range(num_facts):
            self.read_fact()
        self.read_tensors(num_tensors)

    def kind(self) -> str:
        """Return what the file is in a few words."""
        facts = self.facts
        kind = "adapter" if facts.get("general.type") == "adapter" else "model"
        names = [facts.get(f"general.{key}", "") for key in ("architecture", "name")]
        types = [f"{count:,} {name}" for name, count in self.types.most_common(_MOST_SHOWN)]
        parts = [shortened(name) for name in names if name]
        parts.append(counted(self.types.total(), "tensor"))
        shown = f"GGUF {kind} of version {self.version}: {', '.join(parts)}"
        return f"{shown} ({', '.join(types)})" if types else shown

    # --- Facts ---------------------------------------------------------------------------------

    def read_fact(self) -> None:
        key = self.name()
        kind = self.cursor.number(4)
        if key in self.facts:
            raise DamagedFile(f"the header has the fact {shortened(key)!r} twice")
        if key.startswith("tokenizer.chat_template") and kind == _TEXT:
            text = self.template(key)
        else:
            text = self.value(kind)
        if key == "general.alignment":
            self.alignment = int(text) if text.isdecimal() else 0
            if not 0 < self.alignment <= 1 << 20:
                raise DamagedFile(f"the header aligns the tensors to {shortened(text)} bytes")
        if len(self.facts) < _MOST_FACTS:
            self.facts[key] = text

    def name(self) -> str:
        nbytes = self.cursor.count(self.wide, 1)
        if nbytes > _LONGEST_NAME:
            raise DamagedFile(f"a name in the header has {nbytes:,} bytes")
        return self.cursor.text(nbytes, _LONGEST_NAME)

    def value(self, kind: int) -> str:
        """Return the text of a value of this type, and step over it."""
        cursor = self.cursor
        if kind in _NUMBERS:
            nbytes, signed = _NUMBERS[kind]
            return str(cursor.number(nbytes, signed=signed))
        if kind == _BOOL:
            return "true" if cursor.number(1) else "false"
        if kind == _TEXT:
            return cursor.text(cursor.count(self.wide, 1), _LONGEST_VALUE)
        if kind == _ARRAY:
            return self.array()
        if kind in _REALS:
            return f"{cursor.real(4 if kind == _F32 else 8):.9g}"
        raise DamagedFile(f"the header has a value of an unknown type {kind}")

    def array(self) -> str:
        kind = self.cursor.number(4)
        if kind in _NUMBERS or kind in _REALS or kind == _BOOL:
            nbytes = 1 if kind == _BOOL else _NUMBERS.get(kind, (_REALS.get(kind, 1),))[0]
            count = self.cursor.count(self.wide, nbytes)
            if count > _MOST_SHOWN:
                self.cursor.skip(count * nbytes)
                return f"{count:,} numbers"
            return f"[{', '.join(self.value(kind) for _ in range(count))}]"
        if kind != _TEXT:
            raise DamagedFile(f"the header has an array of an unknown type {kind}")
        count = self.cursor.count(self.wide, self.wide)
        if count > _MOST_SHOWN:
            self.cursor.skip_texts(count, self.wide)
            return f"{count:,} texts"
        return f"[{', '.join(repr(self.value(_TEXT)) for _ in range(count))}]"

    def template(self, key: str) -> str:
        """Return the start of a chat template, after a look at all of it."""
        nbytes = self.cursor.count(self.wide, 1)
        text = self.cursor.text(nbytes, _LONGEST_TEMPLATE)
        found = _ESCAPES.search(text)
        if found is not None:
            said = f"the chat template uses {found[0]}: filling it in would run code"
            self.findings.append(Finding("template-code", "dangerous", key, said))
        elif nbytes > _LONGEST_TEMPLATE:
            said = f"the chat template has {nbytes:,} bytes, and not all of it was looked at"
            self.findings.append(Finding("template-code", "ambiguous", key, said))
        return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."

    # --- Tensors -------------------------------------------------------------------------------

    def read_tensors(self, count: int) -> None:
        places = {}
        for _ in range(count):
            name = self.name()
            if name in places:
                raise DamagedFile(f"the header has tensor {shortened(name)!r} twice")
            places[name] = self.place(name)
        start = -(-self.cursor.position // self.alignment) * self.alignment
        for name, (kind, shape, offset) in places.items():
            self.tensors[name] = self.entry(name, kind, shape, start + offset)

    def place(self, name: str) -> tuple[int, tuple[int, ...], int]:
        """Return a tensor's type, its shape, and where it starts in the data."""
        cursor = self.cursor
        num_dimensions = cursor.number(4)
        if num_dimensions > _MOST_DIMENSIONS:
            raise DamagedFile(f"tensor {shortened(name)!r} has {num_dimensions:,} dimensions")
        shape = tuple(cursor.number(self.wide) for _ in range(num_dimensions))[::-1]
        check_shape(name, shape)
        return cursor.number(4), shape, cursor.number(8)

    def entry(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> Value:
        """Return a tensor, or its type and shape as a text where PyTorch has no such type."""
        type_name, block_size, block_nbytes = _TYPES.get(kind, (f"type {kind}", 1, 0))
        self.types[type_name] += 1
        if type_name in _DTYPES:
            order = self.cursor.byteorder
            return tensor_at(self.file, name, _DTYPES[type_name], shape, offset, byteorder=order)
        end = offset + -(-prod(shape) // block_size) * block_nbytes
        if end > self.file.nbytes:
            raise DamagedFile(
                f"the file is truncated: tensor {shortened(name)!r} ends at byte {end:,}, and the "
                f"file at {self.file.nbytes:,}",
                advice="Copy or download it again.",
            )
        return f"{type_name}, shape {shown_shape(shape)}"


FORMAT = Format("gguf", sniff, describe)
