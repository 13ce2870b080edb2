"""The archives of PyTorch 1.0 to 1.2: TorchScript programs, and what the C++ API saved.

Layout: a zip with one root folder:

    <root>/model.json          a `torch.ModelDef` (see torch.proto) as protobuf's JSON
    <root>/tensors/<n>         the raw bytes of each storage
    <root>/attributes.pkl      values that are no tensors, as a pickle of C++ (since 1.1)
    <root>/code/*.py           the methods of each module, where it has any
    <root>/debug/*.pkl         where the code came from (1.2)
    <root>/libs/**.py          the code of other classes
    <root>/version, extra/*    as in `torchscript`

In the JSON a 64-bit number may be a text, names may be in either spelling (`isBuffer`,
`is_buffer`), and a field with its default value may be missing:

    {"protoVersion": "3", "producerName": "pytorch",
     "mainModule": {"name", "parameters": [{"name", "tensorId", "isBuffer"}],
                    "attributes": [{"name", "type", "id"}], "submodules": [...],
                    "torchscriptArena": {"key": "code/model.py"}},
     "tensors": [{"dims", "strides", "offset", "dataType", "requiresGrad", "device",
                  "data": {"key": "tensors/0"}}]}

The root of the tree is the main module, in the form in which `nn.Module` pickles. A module has no
class in the file, and is named by its place, as PyTorch does when it reads such a file.

`torchscript` is said of an archive in which a module has methods, `torch-cpp` of any other.

Limits: no version since 1.3 writes these files, and the official builds of today read them no more.

Source: caffe2/proto/torch.proto; torch/csrc/jit/serialization/import_legacy.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from torchkeep.contents import Contents, Finding, Global, Object, TensorEntry, Value
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.formats.machine_code import is_native
from torchkeep.formats.programs.inner_files import Members
from torchkeep.formats.programs.json_record import read_object
from torchkeep.formats.programs.torchscript import PROGRAM, read_code, read_extra, run_aside
from torchkeep.formats.programs.torchscript_modules import SCRIPT_CALLS, STATE
from torchkeep.formats.torch.archive_pickles import ArchivePickles, require
from torchkeep.formats.torch.objects import build_tensor
from torchkeep.formats.zips.records import (
    OWN_RECORDS,
    check_packing,
    odd_records,
)
from torchkeep.formats.zips.rooted import Archive

CONTAINER = "torch-cpp"

DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "FLOAT": "float32",
        "INT32": "int32",
        "BYTE": "uint8",
        "BOOL": "bool",
        "UINT8": "uint8",
        "INT8": "int8",
        "UINT16": "uint16",
        "INT16": "int16",
        "INT64": "int64",
        "FLOAT16": "float16",
        "DOUBLE": "float64",
    }
)
"""PyTorch's name for each of Caffe2's element types (caffe2.proto, `TensorProto.DataType`)."""
_NUMBERED = (
    *("", "FLOAT", "INT32", "BYTE", "", "BOOL", "UINT8", "INT8"),
    *("UINT16", "INT16", "INT64", "", "FLOAT16", "DOUBLE"),
)
"""The same types by number."""
_QUANTIZED = {"uint8": "quint8", "int8": "qint8", "int32": "qint32"}

_RECORDS = (*OWN_RECORDS, "model.json", "attributes.pkl")
_KNOWN = re.compile(r"tensors/\d+|(code|libs)/.+\.py|debug/.+\.pkl|extra/.+", re.DOTALL)
_METHOD = re.compile(r"^def (\w+)", re.MULTILINE)
_CAPITAL = re.compile("[A-Z]")
_NUMBER = re.compile(r"-?[0-9]{1,19}")
_MOST_METHODS = 5
_LONGEST_FACT = 64
_MOST_FINDINGS = 100
_FREE_CHARACTERS = 10_000


def describe(archive: Archive) -> Contents:
    """Return what the archive holds: its directory, its JSON, its pickles and code are read."""
    require(archive, "model.json")
    return _Reading(archive).describe()


class _Reading:
    """One reading of such an archive."""

    def __init__(self, archive: Archive) -> None:
        check_packing(archive)
        self.archive = archive
        self.model = read_object(archive, "model.json")
        self.pickles = ArchivePickles(archive)
        self.findings = odd_records(archive, _is_known, _RECORDS)
        self.sources = dict(read_code(archive, "libs/").sources)
        self.texts = {
            name: archive.read(name).decode("utf-8", "replace")
            for name in archive.names()
            if name.startswith("code/")
        }
        self.tensors: list[TensorEntry | None] = []
        self.parameters: dict[int, TensorEntry] = {}
        self.attributes: list[Value] = []

    def describe(self) -> Contents:
        for index, item in enumerate(_list(self.model, "tensors")):
            self.tensors.append(self.read_tensor(index, _message(item)))
        self.attributes = self.read_attributes()
        main = _message(_get(self.model, "mainModule"))
        root = self.read_modules(main)
        for name in self.archive.names():
            if name.startswith("debug/") and name.endswith(".pkl"):
                run_aside(self.pickles, name)
        members = Members(self.archive)
        extra = read_extra(self.archive, members)
        if self.texts:
            self.findings.append(PROGRAM)
        return Contents(
            path=self.archive.file.path,
            nbytes=self.archive.file.nbytes,
            container="torchscript" if self.texts else CONTAINER,
            root=root,
            metadata={**self.pickles.facts, **self.facts(), **extra},
            pickle_protocol=self.pickles.protocol,
            globals=tuple(dict.fromkeys((*self.pickles.names, *members.names))),
            sources=self.sources,
            findings=(
                *self.archive.directory.findings,
                *self.findings,
                *dict.fromkeys(self.pickles.findings),
                *members.findings,
            ),
            kind=self.kind(main),
            members=tuple(members.contents.values()),
        )

    def facts(self) -> dict[str, str]:
        """Return what the model says about its writer."""
        fields = ("protoVersion", "producerName", "producerVersion")
        values = {field: _get(self.model, field) for field in fields}
        return {
            field: str(value)[:_LONGEST_FACT]
            for field, value in values.items()
            if isinstance(value, str | int)
        }

    def kind(self, main: Mapping[str, Any]) -> str:
        """Return what the archive is in a few words."""
        if not self.texts:
            return "values saved by the C++ API of PyTorch 1.0 to 1.2"
        methods = _METHOD.findall(self.texts.get(_code_key(main), ""))
        what = f"TorchScript program of PyTorch 1.0 to 1.2: {_name(main)}"
        return f"{what} with {', '.join(methods[:_MOST_METHODS])}" if methods else what

    # --- Tensors and other values -----------------------------------------------------------

    def read_tensor(self, index: int, item: Mapping[str, Any]) -> TensorEntry | None:
        """Return a tensor of the table; None, and a finding, if it makes no sense."""
        try:
            dtype = _dtype(item)
            key = _get(_message(_get(item, "data")), "key")
            if not isinstance(key, str):
                raise ValueError("it lies in no record")
            device = _get(item, "device")
            entry = self.pickles.tensor(
                key,
                dtype,
                tuple(map(_int, _list(item, "dims"))),
                tuple(map(_int, _list(item, "strides"))),
                _int(_get(item, "offset", 0)),
                requires_grad=_get(item, "requiresGrad") is True,
                device=device if isinstance(device, str) else "cpu",
            )
            if dtype in _QUANTIZED.values():
                scale, zero_point = _get(item, "scale", 0.0), _int(_get(item, "zeroPoint", 0))
                return replace(entry, quantizer=("per_tensor_affine", scale, zero_point))
            return entry
        except ValueError as error:
            self.note("malformed-tensor", f"tensor {index}", f"it can't be made: {error}")
            return None

    def note(self, rule: str, place: str, text: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(rule, "damaged", place, text))

    def read_attributes(self) -> list[Value]:
        """Return the table of the values that the modules' attributes refer to."""
        if self.archive.record("attributes.pkl") is None:
            return []
        table = self.pickles.run(
            "attributes.pkl",
            calls={**SCRIPT_CALLS, "torch.jit._pickle.build_tensor_from_id": self.tensor_by_id},
            builder=self.build,
        )
        return list(table) if isinstance(table, list | tuple) else []

    def tensor_by_id(self, index: Value) -> TensorEntry | None:
        if not isinstance(index, int) or not 0 <= index < len(self.tensors):
            raise ValueError("there is no such tensor")
        return self.tensors[index]

    def build(self, target: Value, state: Value) -> Value | None:
        """Return what the pickle of PyTorch 1.1 makes of its two made-up classes."""
        if isinstance(target, Object) and target.callee == Global("__main__", "IntList"):
            return state
        if isinstance(target, Object) and target.callee == Global("__main__", "TensorID"):
            try:
                return self.tensor_by_id(state)
            except ValueError as error:
                raise DamagedFile(f"the attributes name a tensor: {error}") from None
        return build_tensor(target, state)

    # --- Modules ----------------------------------------------------------------------------

    def read_modules(self, main: Mapping[str, Any]) -> Object:
        """Return the main module, with all modules in it."""
        root = Object(_class_of("__torch__", main), ())
        waiting = [(main, root)]
        json_nbytes = self.archive.directory.records[f"{self.archive.root}model.json"].nbytes
        room = _FREE_CHARACTERS + 8 * json_nbytes
        while waiting:
            message, made = waiting.pop()
            children: dict[str, Object] = {}
            for child in map(_message, _list(message, "submodules")):
                placed = Object(_class_of(made.class_path, child), ())
                children[_name(child)] = placed
                waiting.append((child, placed))
                room -= len(placed.class_path)
                if room < 0:  # names of modules within modules add up
                    raise LimitReached("the modules are nested deeper than any program's")
            made.state = {**self.read_module(message), "_modules": children}
            text = self.texts.get(_code_key(message))
            if text is not None:
                self.sources[made.class_path] = text
        return root

    def read_module(self, message: Mapping[str, Any]) -> dict[str, Value]:
        """Return a module's own tables, as `nn.Module` pickles them."""
        parameters: dict[str, Value] = {}
        buffers: dict[str, Value] = {}
        rest: dict[str, Value] = {}
        for item in map(_message, _list(message, "parameters")):
            index = _int(_get(item, "tensorId", 0))
            if _get(item, "isBuffer") is True:
                buffers[_name(item)] = _look_up(self.tensors, index)
            else:
                parameters[_name(item)] = self.parameter(index)
        for item in map(_message, _list(message, "attributes")):
            value = _look_up(self.attributes, _int(_get(item, "id", 0)))
            # A tensor that is no parameter was a buffer, which then had no mark of its own.
            is_buffer = isinstance(value, TensorEntry) and _get(item, "type") == "Tensor"
            if _name(item) not in buffers:
                (buffers if is_buffer else rest)[_name(item)] = value
        state = _get(message, "getStateAttributeId")
        if state is not None:
            rest[STATE] = _look_up(self.attributes, _int(state))
        return {**rest, "_parameters": parameters, "_buffers": buffers}

    def parameter(self, index: int) -> TensorEntry | None:
        """Return a tensor of the table as a parameter, the same one each time."""
        tensor: TensorEntry | None = _look_up(self.tensors, index)
        if tensor is None:
            return None
        return self.parameters.setdefault(index, replace(tensor, is_parameter=True))


# --- Protobuf's JSON ----------------------------------------------------------------------------


def _get(message: Mapping[str, Any], field: str, default: Any = None) -> Any:
    """Return a field, which may be spelled in either of protobuf's two ways."""
    found = message.get(field)
    if found is None:
        found = message.get(_with_underscores(field))
    return default if found is None else found


@cache
def _with_underscores(field: str) -> str:
    """Return the other spelling of one of our own field names."""
    return _CAPITAL.sub(lambda letter: f"_{letter[0].lower()}", field)


def _list(message: Mapping[str, Any], field: str) -> list[Any]:
    """Return a repeated field.

    Raises:
        DamagedFile: it is no list.
    """
    value = _get(message, field, [])
    if not isinstance(value, list):
        raise DamagedFile(f"model.json has no list where {field} belongs")
    return value


def _message(value: Any) -> Mapping[str, Any]:
    """Return a message; an absent one is empty.

    Raises:
        DamagedFile: it is none.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DamagedFile("model.json has a plain value where a message belongs")
    return value


def _int(value: Any) -> int:
    """Return a number; those of 64 bits are texts in protobuf's JSON.

    Raises:
        DamagedFile: it is no number of 64 bits.
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise DamagedFile(f"model.json has {str(value)[:40]!r} where a number belongs")
    return value


def _name(message: Mapping[str, Any]) -> str:
    name = _get(message, "name", "")
    return name if isinstance(name, str) else ""


def _code_key(message: Mapping[str, Any]) -> str:
    """Return the record of a module's code; empty if it has none."""
    key = _get(_message(_get(message, "torchscriptArena")), "key", "")
    return key if isinstance(key, str) else ""


def _look_up(table: list[Any], index: int) -> Any:
    """Return an item of a table; -1 stands for None.

    Raises:
        DamagedFile: the table is shorter.
    """
    if index == -1:
        return None
    if not 0 <= index < len(table):
        raise DamagedFile(f"the model refers to value {index} of a table of {len(table)}")
    return table[index]


def _class_of(parent: str, message: Mapping[str, Any]) -> Global:
    """Return the name that PyTorch gives the class of a module, which has none in the file."""
    atoms = [f"_{atom}" if atom.isdecimal() else atom for atom in _name(message).split(".")]
    return Global(".".join((parent, *atoms[:-1])), atoms[-1])


def _dtype(message: Mapping[str, Any]) -> str:
    """Return the element type of a tensor; ValueError if there is no such type."""
    kind = _get(message, "dataType")
    if isinstance(kind, int) and 0 <= kind < len(_NUMBERED):
        kind = _NUMBERED[kind]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"its type {str(kind)[:40]!r} is unknown")
    dtype = DTYPES[kind]
    if _get(message, "isQuantized") is not True:
        return dtype
    if dtype not in _QUANTIZED:
        raise ValueError(f"there is no quantized {dtype}")
    return _QUANTIZED[dtype]


def _is_known(name: str) -> bool:
    if is_native(name):
        return False
    return name in _RECORDS or bool(_KNOWN.fullmatch(name))
