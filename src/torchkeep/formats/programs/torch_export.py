"""Exported programs: what `torch.export.save` and AOTInductor write, `.pt2`.

Layout, since PyTorch 2.8, a zip of stored records below one root folder:

    <root>/archive_format, archive_version       `pt2` and a number
    <root>/models/<name>.json                    the program, see `export_schema`
    <root>/data/weights/<name>_weights_config.json   parameters and buffers by name
    <root>/data/weights/weight_<n>               the raw bytes of a storage, or a `torch.save` of it
    <root>/data/constants/<name>_constants_config.json, tensor_<n>   the same for constants
    <root>/data/constants/custom_obj_<n>, opaque_obj_<n>   pickles of objects
    <root>/data/sample_inputs/<name>.pt          a `torch.save`
    <root>/data/aotinductor/<name>/*             machine code and its sources
    <root>/data/executorch/*, extra/*            other files
    <root>/.data/version, byteorder, .data/serialization_id

    config: {"config": {<tensor's name>: {"path_name": "weight_0", "is_param", "use_pickle",
             "tensor_meta": {"dtype": 7, "sizes": [{"as_int": 4}], "strides", "storage_offset",
                             "requires_grad", "device", "layout"}}}}

PyTorch 2.6 and 2.7 wrote `data/weights/<name>.pt`, a `torch.save`, in place of a config. Before,
from PyTorch 2.1 on, it was a zip without folders:

    serialized_exported_program.json, version
    serialized_state_dict.pt, serialized_constants.pt, serialized_example_inputs.pt, each a
    `torch.save`; the first two were called `.json` for a while, with the same content
    extra_files/*

The root of the tree has `state_dict`, `constants`, `sample_inputs` and `program`, which says what
the program takes and gives; if there are several models, each of them has these under its name.

Limits: the graph is counted, not drawn. Weights that were saved without their values (fake tensors)
have shapes and no bytes. Machine code is named, not read.

Source: torch/export/pt2_archive/_package.py and constants.py, torch/export/__init__.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torchkeep.contents import (
    ITEM_SIZE,
    Contents,
    DictObject,
    Finding,
    Global,
    Storage,
    TensorEntry,
    Value,
)
from torchkeep.errors import UnsupportedContent
from torchkeep.formats.machine_code import is_native
from torchkeep.formats.programs.export_schema import (
    TensorMeta,
    as_dict,
    as_list,
    hazards,
    program_facts,
    tensor_meta,
)
from torchkeep.formats.programs.inner_files import Members
from torchkeep.formats.programs.json_record import read_object
from torchkeep.formats.programs.torchscript import read_text
from torchkeep.formats.torch.archive_pickles import ArchivePickles, require
from torchkeep.formats.torch.objects import rebuild_tensor_v2
from torchkeep.formats.zips.records import (
    OWN_RECORDS,
    check_packing,
    odd_records,
)
from torchkeep.formats.zips.rooted import Archive
from torchkeep.wording import counted

CONTAINER = "torch-export"

_OLD_PROGRAM = "serialized_exported_program.json"
_OLD_TREES = {
    "serialized_state_dict.pt": "state_dict",
    "serialized_state_dict.json": "state_dict",
    "serialized_constants.pt": "constants",
    "serialized_constants.json": "constants",
    "serialized_example_inputs.pt": "sample_inputs",
}
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_NATIVE, _SAMPLES, _MODELS = "data/aotinductor/", "data/sample_inputs/", "models/"
_CONFIGS = ("_weights_config.json", "_model_param_config.json")
_CONSTANT_CONFIGS = ("_constants_config.json", "_model_constants_config.json")

_RECORDS = (*OWN_RECORDS, "archive_format", "archive_version", _OLD_PROGRAM, *_OLD_TREES)
_KNOWN = re.compile(
    r"models/.+\.json|data/(weights|constants|sample_inputs|executorch|mtia)/.+"
    r"|xl_model_weights/.+|extra(_files)?/.+",
    re.DOTALL,
)

PROGRAM = Finding(
    "program",
    "needs-trust",
    "",
    "the file is a program: torch.export.load builds its graph, and unpickles what is in it",
)


def describe(archive: Archive) -> Contents:
    """Return what the archive holds: its directory, its JSON and its pickles are read.

    Raises:
        UnsupportedContent: it is an archive of PyTorch's of another format.
    """
    check_packing(archive)
    if archive.record("archive_format") is not None:
        found = read_text(archive, "archive_format") or ""
        if found.strip() != "pt2":
            raise UnsupportedContent(f"this is an archive of the unknown format {found[:20]!r}")
        return _Reading(archive).describe()
    require(archive, _OLD_PROGRAM)
    return _OldReading(archive).describe()


class _Reading:
    """One reading of an archive of PyTorch 2.6 or newer."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.names = archive.names()
        self.pickles = ArchivePickles(archive)
        self.members = Members(archive)
        self.findings = odd_records(archive, _is_known, _RECORDS)
        self.imports: dict[Global, None] = {}
        self.used: set[str] = set()
        self.programs: dict[str, dict[str, Value]] = {}
        self.texts: dict[str, str] = {}

    def describe(self) -> Contents:
        root = self.read_root()
        self.look_into_the_rest()
        names = (*self.imports, *self.pickles.names, *self.members.names)
        return Contents(
            path=self.archive.file.path,
            nbytes=self.archive.file.nbytes,
            container=CONTAINER,
            root=root,
            metadata={**self.pickles.facts, **self.facts(), **self.texts},
            pickle_protocol=self.members.protocol,
            globals=tuple(dict.fromkeys(names)),
            findings=(
                *self.archive.directory.findings,
                PROGRAM,
                *self.findings,
                *dict.fromkeys(self.pickles.findings),
                *self.members.findings,
            ),
            kind=self.kind(),
            members=tuple(self.members.contents.values()),
        )

    def facts(self) -> dict[str, str]:
        facts = {}
        for name in ("archive_format", "archive_version"):
            text = read_text(self.archive, name) if name in self.names else None
            if text is not None:
                facts[name] = text.strip()[:_LONGEST_FACT]
        return facts

    # --- The models -------------------------------------------------------------------------

    def read_root(self) -> Value:
        """Return the tree of the only model, or of each model by name."""
        trees = {name: self.read_model(name) for name in self.model_names()}
        return next(iter(trees.values())) if len(trees) == 1 else trees

    def model_names(self) -> list[str]:
        """Return the names of all models, of which any part is there."""
        found: dict[str, None] = {}
        for name in self.names:
            if name.startswith(_NATIVE):
                found[name.removeprefix(_NATIVE).partition("/")[0]] = None
            for folder, endings in _PARTS_OF_A_MODEL:
                for ending in endings:
                    if name.startswith(folder) and name.endswith(ending):
                        found[name[len(folder) : len(name) - len(ending)]] = None
                        break
        return list(found)

    def read_model(self, name: str) -> dict[str, Value]:
        tree: dict[str, Value] = {}
        weights = self.read_payload(name, _WEIGHTS, _CONFIGS)
        weights = self.read_native_weights(name) if weights is None else weights
        tree["state_dict"] = as_state_dict(weights)
        tree["constants"] = self.read_payload(name, _CONSTANTS, _CONSTANT_CONFIGS)
        if f"{_SAMPLES}{name}.pt" in self.names:
            tree["sample_inputs"] = self.member(f"{_SAMPLES}{name}.pt")
        if f"{_MODELS}{name}.json" in self.names:
            tree["program"] = self.read_program(name, f"{_MODELS}{name}.json")
        return {part: value for part, value in tree.items() if value}

    def read_program(self, name: str, record: str) -> dict[str, Value]:
        """Return what a program says about itself, and keep what loading it would import."""
        program = read_object(self.archive, record)
        found = hazards(program, record)
        self.imports.update(found.names)
        self.findings += found.findings
        self.programs[name] = program_facts(program)
        return self.programs[name]

    # --- Tensors ----------------------------------------------------------------------------

    def read_payload(self, model: str, folder: str, endings: tuple[str, ...]) -> Value:
        """Return the tensors that a model's config names, or its pickle; None if it has neither."""
        if f"{folder}{model}.pt" in self.names:
            return self.member(f"{folder}{model}.pt")
        for ending in endings:
            record = f"{folder}{model}{ending}"
            if record in self.names:
                table = as_dict(read_object(self.archive, record).get("config"))
                return {name: self.payload(name, item, folder) for name, item in table.items()}
        return None

    def payload(self, name: str, item: Any, folder: str) -> Value:
        """Return what a config says of one tensor; None, and a finding, if it makes no sense."""
        entry = as_dict(item)
        record = f"{folder}{entry.get('path_name')}"
        self.used.add(record)
        if record not in self.names:
            self.note("missing-record", name, f"it is said to lie in {record}, which is not there")
            return None
        if entry.get("use_pickle") is True:
            return self.member(record)
        try:
            tensor = self.tensor(record, tensor_meta(entry.get("tensor_meta")))
        except ValueError as error:
            self.note("malformed-tensor", name, f"it can't be made: {error}")
            return None
        return replace(tensor, is_parameter=entry.get("is_param") is True)

    def tensor(self, record: str, meta: TensorMeta) -> TensorEntry:
        placed = self.archive.directory.records[self.archive.root + record]
        if placed.nbytes == 0:  # an empty tensor, or a fake one, of which there are no bytes
            return _without_bytes(meta)
        return self.pickles.tensor(
            record,
            meta.dtype,
            meta.sizes,
            meta.strides,
            meta.offset,
            requires_grad=meta.requires_grad,
            device=meta.device,
        )

    def read_native_weights(self, model: str) -> Value:
        """Return the weights beside machine code, which names a file and a view of it for each."""
        record = f"{_NATIVE}{model}/weights_config.json"
        if record not in self.names:
            return None
        tensors: dict[str, Value] = {}
        for name, item in read_object(self.archive, record).items():
            file, *view = [*as_list(item), None, None, None, None][:4]
            whole = self.member(f"{_WEIGHTS}{file}") if isinstance(file, str) else None
            try:
                tensors[name] = _view(whole, *view)
            except ValueError as error:
                self.note("malformed-tensor", name, f"it can't be made: {error}")
        return tensors

    def member(self, record: str) -> Value:
        """Return the tree of a file in the archive."""
        self.used.add(record)
        if record not in self.names:
            self.note("missing-record", record, "the archive refers to it and does not have it")
            return None
        if record in self.members.contents:
            return self.members.contents[record].root
        return self.members.add(record, needed=True)

    def note(self, rule: str, place: str, text: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(rule, "damaged", place, text))

    # --- The rest ---------------------------------------------------------------------------

    def look_into_the_rest(self) -> None:
        """Look for files of values among the records that nothing has referred to."""
        native = [name for name in self.names if name.startswith(_NATIVE) and is_native(name)]
        if native:
            files = counted(len(native), "file")
            text = f"machine code, or its source, is in {files}, and loading the program runs it"
            self.findings.append(Finding("native-code", "needs-trust", native[0], text))
        room = _MOST_TEXT
        for name in self.names:
            if name in self.used or not _KNOWN.fullmatch(name) or name.endswith(".json"):
                continue
            text_of = read_text(self.archive, name) if name.startswith("extra") else None
            if text_of is None:
                self.members.add(name, needed=False)
            elif len(text_of) <= room:
                room -= len(text_of)
                self.texts[name] = text_of

    def kind(self) -> str:
        """Return what the archive is in a few words."""
        kinds = [_program_kind(facts) for facts in self.programs.values()]
        native = {
            name.removeprefix(_NATIVE).partition("/")[0]
            for name in self.names
            if name.startswith(_NATIVE)
        }
        if native:
            kinds.append(f"AOTInductor package of {counted(len(native), 'compiled model')}")
        if not kinds:
            return "exported program without a graph"
        if len(self.programs) > 1:
            return f"{len(self.programs)} exported programs"
        return " and ".join(kinds)


_PARTS_OF_A_MODEL = (
    (_MODELS, (".json",)),
    (_WEIGHTS, (*_CONFIGS, ".pt")),
    (_CONSTANTS, (*_CONSTANT_CONFIGS, ".pt")),
)
_LONGEST_FACT = 64
_MOST_FINDINGS = 1_000
_MOST_TEXT = 1 << 20


class _OldReading(_Reading):
    """One reading of an archive of PyTorch 2.1 to 2.5: a zip of whole files."""

    def read_root(self) -> Value:
        tree: dict[str, Value] = {
            part: self.member(name) for name, part in _OLD_TREES.items() if name in self.names
        }
        tree["state_dict"] = as_state_dict(tree.get("state_dict"))
        tree["program"] = self.read_program("model", _OLD_PROGRAM)
        return {part: value for part, value in tree.items() if value}


def as_state_dict(value: Value) -> Value:
    """Return a table of tensors as what it is: a state dict, whatever the tensors' names."""
    if not isinstance(value, dict):
        return value
    table = DictObject("collections.OrderedDict")
    table.update(value)
    table.attributes["_metadata"] = {}
    return table


def _without_bytes(meta: TensorMeta) -> TensorEntry:
    """Return a tensor that was saved by its shape alone; ValueError if there is no such shape."""
    endless = TensorEntry(meta.dtype, (1 << 62,), (1,), Storage("", 0, None, "meta"))
    shape, strides, offset = meta.sizes, meta.strides, meta.offset
    entry = rebuild_tensor_v2(endless, offset, shape, strides, meta.requires_grad, None)
    device = "meta" if entry.numel else meta.device
    return replace(entry, storage=Storage("", entry.nbytes_needed, None, device))


def _view(whole: Value, shape: Value, stride: Value, offset: Value) -> TensorEntry:
    """Return a view of the storage of a tensor; ValueError if there is no such view."""
    if not isinstance(whole, TensorEntry):
        raise ValueError("the file that it is said to lie in holds no tensor")
    storage = whole.storage
    flat = TensorEntry(whole.dtype, (storage.nbytes // ITEM_SIZE[whole.dtype],), (1,), storage)
    return rebuild_tensor_v2(flat, offset, shape, stride, False, None)


def _program_kind(facts: dict[str, Value]) -> str:
    version = facts["torch_version"]
    inputs = counted(len(facts["inputs"]), "input")
    outputs = counted(len(facts["outputs"]), "output")
    size = f"{counted(facts['num_nodes'], 'operation')}, {inputs}, {outputs}"
    opset = ", ".join(f"{name} {number}" for name, number in facts["opset_version"].items())
    made_by = f" of PyTorch {version}" if version else ""
    versions = f"schema {facts['schema_version']}" if facts["schema_version"] else ""
    detail = ", ".join(filter(None, (size, versions, f"opset {opset}" if opset else "")))
    return f"exported program{made_by}: {detail}"[:_LONGEST_KIND]


_LONGEST_KIND = 200


def _is_known(name: str) -> bool:
    if name in _RECORDS or name.startswith(_NATIVE):
        return True
    return bool(_KNOWN.fullmatch(name)) and not is_native(name)
