"""ONNX models.

Layout: one protobuf message, `ModelProto`; its fields by number:

    1 the version of the format, 2 and 3 the producer's name and version, 4 its domain,
    5 the model's version, 6 a text about it, 7 the graph, 8 a set of operators (domain, version),
    14 a fact (key, value), 20 a training graph, 25 a function

A graph has nodes (1), a name (2), initializers (5), inputs (11), outputs (12). An initializer has
its dims (1), its type (2), its name (8), and its elements: raw (9), in one of the packed lists
(4, 5, 7, 10, 11), or in another file (13 with 14 being 1).

Limits: elements in lists of varints, of types that PyTorch lacks, and in other files have no place
here. Where protobuf lets a field stand twice, the last one counts; the tables list all.

Source: onnx/onnx.proto.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from torchkeep.contents import Contents, Finding, Value
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import MemoryFile, Readable
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.described_only import check_shape, not_loaded, shown_shape, tensor_at
from torchkeep.formats.ecosystems.protobuf import as_number, as_numbers, as_part, as_text, fields
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits
from torchkeep.wording import counted, shortened

_HIGHEST_VERSION = 63
_MOST_DIMENSIONS = 64
_MOST_FACTS = 1_000
_MOST_FINDINGS = 20

_TYPES: dict[int, tuple[str, str | None]] = {
    1: ("float", "float32"),
    2: ("uint8", "uint8"),
    3: ("int8", "int8"),
    4: ("uint16", "uint16"),
    5: ("int16", "int16"),
    6: ("int32", "int32"),
    7: ("int64", "int64"),
    8: ("string", None),
    9: ("bool", "bool"),
    10: ("float16", "float16"),
    11: ("double", "float64"),
    12: ("uint32", "uint32"),
    13: ("uint64", "uint64"),
    14: ("complex64", "complex64"),
    15: ("complex128", "complex128"),
    16: ("bfloat16", "bfloat16"),
    17: ("float8e4m3fn", "float8_e4m3fn"),
    18: ("float8e4m3fnuz", "float8_e4m3fnuz"),
    19: ("float8e5m2", "float8_e5m2"),
    20: ("float8e5m2fnuz", "float8_e5m2fnuz"),
    21: ("uint4", None),
    22: ("int4", None),
    23: ("float4e2m1", None),
    24: ("float8e8m0", "float8_e8m0fnu"),
    25: ("uint2", None),
    26: ("int2", None),
    27: ("float6e2m3", None),
    28: ("float6e3m2", None),
}
"""ONNX's and PyTorch's name of each element type."""

_PACKED_REALS = {4: "float32", 10: "float64"}
"""The lists whose elements are as wide as they are in memory, and the type that they are then."""

_OWN_DOMAINS = frozenset(
    ["", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"]
)
"""Whose operators every runtime has."""

_PYTHON_OPERATORS = frozenset(["PyOp", "PythonOp", "PythonOpGrad"])
"""Operators of ONNX Runtime and its extensions that call a Python function by name."""


_TEXTS = frozenset({2, 3, 4, 6})
_MESSAGES = frozenset({8, 14, 20, 25, 26})
_GRAPH = 7
"""Fields of a model by what they hold; see the layout above."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts with a version and then with fields that a model has."""
    del nbytes
    if head[:1] != b"\x08" or len(head) < 4 or not 0 < head[1] <= _HIGHEST_VERSION:
        return False
    cursor = Cursor.over(MemoryFile(head[2:], Path("head")), DEFAULT_LIMITS)
    try:
        return _starts_well(cursor)
    except FileProblem:
        return False


def _starts_well(cursor: Cursor) -> bool:
    """Whether these are a model's fields up to its graph, or as far as they can be seen."""
    has_text = False
    while cursor.remaining:
        tag = cursor.varint()
        number, kind = tag >> 3, tag & 7
        if (number, kind) == (5, 0):
            cursor.varint()
            continue
        if kind != 2 or number not in _TEXTS | _MESSAGES | {_GRAPH}:
            return False
        length = cursor.varint()
        seen = cursor.take(min(length, cursor.remaining))
        if number == _GRAPH:
            return length < 1 << 31 and seen[:1] in _GRAPH_STARTS
        if number in _TEXTS:
            text = seen.decode("utf-8", "ignore")
            if len(text.encode()) < len(seen) - 3 or not text.replace("\n", "").isprintable():
                return False
            has_text = True
    return has_text


_GRAPH_STARTS = frozenset(bytes([number << 3 | 2]) for number in (1, 2, 5, 10, 11, 12, 13, 14, 15))
"""Its name and what it has lists of."""


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the model's header, its lists and its nodes say. Elements are not read."""
    model = _Model(file, limits)
    model.read(Cursor.over(file, limits))
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=model.tensors,
        metadata=model.metadata(),
        findings=model.all_findings(),
        kind=model.kind(),
        problem=not_loaded("an ONNX model"),
    )


@dataclass(slots=True)
class _Tensor:
    """A tensor's fields, as far as they are needed."""

    name: str = ""
    type: int = 0
    shape: list[int] = field(default_factory=list)
    raw: Cursor | None = None
    raw_dtype: str | None = None
    """The type of the elements in `raw`; None for the tensor's own."""
    is_external: bool = False
    external: dict[str, str] = field(default_factory=dict)


class _Model:
    """A model that is being read, and what was read of it."""

    def __init__(self, file: Readable, limits: Limits) -> None:
        self.file = file
        self.limits = limits
        self.ir_version = 0
        self.facts: dict[str, str] = {}
        self.producer: list[str] = ["", ""]
        self.opsets: dict[str, int] = {}
        self.tensors: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.num_nodes = 0
        self.num_external = 0
        self.external_files: dict[str, None] = {}
        self.has_graph = False
        self.domains: Counter[str] = Counter()
        self.local_domains: set[str] = set()
        self.findings: dict[str, Finding] = {}
        self.graphs: list[Cursor] = []
        """Graphs inside of nodes that wait to be read."""

    # --- The model -----------------------------------------------------------------------------

    def read(self, message: Cursor) -> None:
        """Read the model to its end."""
        messages = {
            _GRAPH: self.read_main_graph,
            8: self.read_opset,
            14: self.read_fact,
            20: self.read_training,
            25: self.read_function,
        }
        for number, value in fields(message):
            if number in messages:
                messages[number](as_part(value))
            elif number == 1:
                self.ir_version = as_number(value)
            elif number in (2, 3):
                self.producer[number - 2] = as_text(value, 100)
            elif number == 6:
                self.facts["doc_string"] = as_text(value)
        while self.graphs:
            self.read_graph(self.graphs.pop(), is_main=False)
        self.check()

    def check(self) -> None:
        """Raise if the model lacks what every model has."""
        missing = [] if self.has_graph else ["graph"]
        if not self.opsets and self.ir_version >= 3:
            missing.append("set of operators")
        if missing:
            raise DamagedFile(
                f"the ONNX model is truncated: it has no {' and no '.join(missing)}",
                advice="Copy or download it again.",
            )

    def read_opset(self, message: Cursor) -> None:
        domain, version = "", 0
        for number, value in fields(message):
            if number == 1:
                domain = as_text(value, 100)
            elif number == 2:
                version = as_number(value)
        if len(self.opsets) < _MOST_FACTS:
            self.opsets[domain] = version

    def read_fact(self, message: Cursor) -> None:
        key, value = _pair(message)
        if len(self.facts) < _MOST_FACTS:
            self.facts.setdefault(key, value)

    def read_training(self, message: Cursor) -> None:
        for number, value in fields(message):
            if number in (1, 2):
                self.read_graph(as_part(value), is_main=False)

    def read_function(self, message: Cursor) -> None:
        for number, value in fields(message):
            if number == 7:
                self.read_node(as_part(value))
            elif number == 10:
                self.local_domains.add(as_text(value, 100))

    # --- Graphs --------------------------------------------------------------------------------

    def read_main_graph(self, message: Cursor) -> None:
        self.has_graph = True
        self.read_graph(message, is_main=True)

    def read_graph(self, message: Cursor, *, is_main: bool) -> None:
        for number, value in fields(message):
            if number == 1:
                self.num_nodes += is_main
                self.read_node(as_part(value))
            elif number == 2 and is_main:
                self.facts["graph"] = as_text(value)
            elif number == 5:
                self.add_tensor(self.read_tensor(as_part(value)))
            elif number == 15:
                self.read_sparse(as_part(value))
            elif number in (11, 12) and is_main:
                values = self.inputs if number == 11 else self.outputs
                if len(values) < _MOST_FACTS:
                    values.append(_shown_value(as_part(value)))

    def read_node(self, message: Cursor) -> None:
        operator = domain = ""
        for number, value in fields(message):
            if number == 4:
                operator = as_text(value, 100)
            elif number == 7:
                domain = as_text(value, 100)
            elif number == 5:
                self.read_attribute(as_part(value))
        if domain not in _OWN_DOMAINS and len(self.domains) < _MOST_FACTS:
            self.domains[domain] += 1
        if operator in _PYTHON_OPERATORS:
            text = f"a node {operator} calls a Python function by its name"
            self.findings.setdefault(
                operator, Finding("python-operator", "needs-trust", operator, text)
            )

    def read_attribute(self, message: Cursor) -> None:
        for number, value in fields(message):
            if number in (5, 10):
                self.check_external(self.read_tensor(as_part(value)))
            elif number in (22, 23):
                self.read_sparse(as_part(value))
            elif number in (6, 11):
                self.graphs.append(as_part(value))
                self.limits.check("records", len(self.graphs))

    # --- Tensors -------------------------------------------------------------------------------

    def read_tensor(self, message: Cursor) -> _Tensor:
        tensor = _Tensor()
        for number, value in fields(message):
            if number == 1:
                tensor.shape += as_numbers(value, _MOST_DIMENSIONS)
                if len(tensor.shape) > _MOST_DIMENSIONS:
                    raise DamagedFile(f"a tensor has more than {_MOST_DIMENSIONS} dimensions")
            elif number == 2:
                tensor.type = as_number(value, 32)
            elif number == 8:
                tensor.name = as_text(value)
            elif number == 9 or (number in _PACKED_REALS and isinstance(value, Cursor)):
                tensor.raw = as_part(value)
                tensor.raw_dtype = _PACKED_REALS.get(number)
            elif number == 13 and len(tensor.external) < _MOST_FINDINGS:
                key, text = _pair(as_part(value))
                tensor.external[key] = text
            elif number == 14:
                tensor.is_external = as_number(value, 32) == 1
        return tensor

    def read_sparse(self, message: Cursor) -> None:
        """Look at a sparse tensor's values and indices, which are tensors."""
        for number, value in fields(message):
            if number in (1, 2):
                tensor = self.read_tensor(as_part(value))
                self.check_external(tensor)

    def add_tensor(self, tensor: _Tensor) -> None:
        """List an initializer: as a tensor if it has a place, else as a text."""
        self.check_external(tensor)
        self.limits.check("records", len(self.tensors))
        if tensor.name in self.tensors:
            text = f"there are two initializers {shortened(tensor.name)!r}"
            self.findings.setdefault(text, Finding("duplicate", "note", tensor.name, text))
        self.tensors[tensor.name] = self.entry(tensor)

    def entry(self, tensor: _Tensor) -> Value:
        shape = tuple(tensor.shape)
        check_shape(tensor.name, shape)
        name, dtype = _TYPES.get(tensor.type, (f"type {tensor.type}", None))
        if dtype is None or tensor.raw is None or (tensor.raw_dtype or dtype) != dtype:
            place = " in another file" if tensor.is_external else ""
            return f"{name}, shape {shown_shape(shape)}{place}"
        entry = tensor_at(self.file, tensor.name, dtype, shape, tensor.raw.position)
        if entry.nbytes != tensor.raw.remaining:
            raise DamagedFile(
                f"initializer {shortened(tensor.name)!r} has {tensor.raw.remaining:,} bytes, and "
                f"its shape {shown_shape(shape)} of {name} needs {entry.nbytes:,}"
            )
        return entry

    def check_external(self, tensor: _Tensor) -> None:
        """Note a tensor whose elements are in another file, and one outside of the folder."""
        location = tensor.external.get("location")
        if location is None:
            return
        self.num_external += 1
        if len(self.external_files) < _MOST_FINDINGS:
            self.external_files.setdefault(location)
        if _leaves_folder(location) and len(self.findings) < _MOST_FINDINGS:
            text = f"the elements of a tensor are in {shortened(location)!r}, outside of the folder"
            self.findings.setdefault(text, Finding("external-path", "dangerous", tensor.name, text))

    # --- What it amounts to --------------------------------------------------------------------

    def kind(self) -> str:
        """Return what the file is in a few words."""
        producer = shortened(" ".join(filter(None, self.producer)))
        parts = [f"ONNX model by {producer}" if producer else "ONNX model"]
        opset = self.opsets.get("", self.opsets.get("ai.onnx"))
        parts += [] if opset is None else [f"opset {opset}"]
        parts += [counted(self.num_nodes, "node"), counted(len(self.tensors), "initializer")]
        if self.num_external:
            parts.append(f"{counted(self.num_external, 'tensor')} in other files")
        return ", ".join(parts)

    def metadata(self) -> dict[str, str]:
        """Return what the model says about itself: its header's facts after its author's."""
        opsets = (f"{domain or 'ai.onnx'} {version}" for domain, version in self.opsets.items())
        facts = {
            "ir_version": str(self.ir_version),
            "producer": " ".join(filter(None, self.producer)),
            "opset": ", ".join(opsets),
            "inputs": "; ".join(self.inputs),
            "outputs": "; ".join(self.outputs),
            "external_data": ", ".join(map(repr, self.external_files)),
        }
        return {**self.facts, **{key: text for key, text in facts.items() if text}}

    def all_findings(self) -> tuple[Finding, ...]:
        """Return the findings, operators of other domains included."""
        notes = [
            Finding(
                "custom-operators",
                "note",
                domain,
                f"operators of the domain {shortened(domain)!r}, in {counted(count, 'node')}, "
                "need a runtime that has them",
            )
            for domain, count in self.domains.most_common(_MOST_FINDINGS)
            if domain not in self.local_domains
        ]
        return (*self.findings.values(), *notes)


def _pair(message: Cursor) -> tuple[str, str]:
    """Return the key and the value in a message of two texts."""
    texts = {1: "", 2: ""}
    for number, value in fields(message):
        if number in texts:
            texts[number] = as_text(value)
    return texts[1], texts[2]


def _shown_value(message: Cursor) -> str:
    """Return an input or an output as a person reads it: `x float [batch, 3, 224, 224]`."""
    name = kind = ""
    for number, value in fields(message):
        if number == 1:
            name = as_text(value, 100)
        elif number == 2:
            for inner, part in fields(as_part(value)):
                kind = _shown_type(as_part(part)) if inner == 1 else kind
    return f"{name} {kind}".strip()


def _shown_type(message: Cursor) -> str:
    kind, sizes = "", "of any shape"
    for number, value in fields(message):
        if number == 1:
            kind = _TYPES.get(as_number(value, 32), ("?", None))[0]
        elif number == 2:
            dims = [_shown_dim(as_part(dim)) for tag, dim in fields(as_part(value)) if tag == 1]
            sizes = f"[{', '.join(dims[:_MOST_DIMENSIONS])}]"
    return f"{kind} {sizes}"


def _shown_dim(message: Cursor) -> str:
    shown = "?"
    for number, value in fields(message):
        if number == 1:
            shown = str(as_number(value))
        elif number == 2:
            shown = as_text(value, 40)
    return shown


def _leaves_folder(location: str) -> bool:
    """Whether a path leads out of the folder that it starts in, on any system."""
    windows = PureWindowsPath(location)
    return bool(windows.anchor) or ".." in windows.parts or PurePosixPath(location).is_absolute()


FORMAT = Format("onnx", sniff, describe)
