"""Packages of `torch.package`: pickles together with the Python code that they need.

Layout: a zip below one root folder:

    <root>/<package>/<name>.pkl       pickles (any name will do); tensors are persistent ids
    <root>/.data/<key>.storage        the raw bytes of each storage
    <root>/<package>/<module>.py      source code; importing from the package runs it
    <root>/<package>/<name>           texts and other resources
    <root>/fx-generated/_<n>.py       the code of traced modules
    <root>/.data/extern_modules       the modules that it takes from outside, one a line
    <root>/.data/python_version, version, serialization_id; byteorder
    <root>/.data/ts_code/<n>/data.pkl, constants.pkl; .data/ts_code/code/**.py
                                      TorchScript modules inside the pickles

A persistent id is `("storage", class, key, location, numel)`, or `("reduce_package", id, function,
arguments)` for what a function of PyTorch's rebuilds with the package at hand: a traced module from
its attributes, a TorchScript module from its number.

The root of the tree is a dictionary from each pickle's path in the package to what it holds.

Limits: resources are looked into only as far as they are files of a known kind. The source of a
class is cut out of its file by indentation.

Source: torch/package/package_importer.py, package_exporter.py; torch/fx/graph_module.py
(`reduce_package_graph_module`); torch/jit/_script.py (`unpackage_script_module`).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from torchkeep.contents import Contents, Files, Finding, Global, Object, Value
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.formats.machine_code import is_native
from torchkeep.formats.programs.inner_files import Members
from torchkeep.formats.programs.torchscript import (
    PROGRAM,
    named_constants,
    read_code,
    with_attributes,
)
from torchkeep.formats.programs.torchscript_code import Code
from torchkeep.formats.programs.torchscript_modules import SCRIPT_CALLS, sort_modules
from torchkeep.formats.torch.archive_pickles import ArchivePickles
from torchkeep.formats.zips.records import (
    OWN_RECORDS,
    check_packing,
    odd_records,
)
from torchkeep.formats.zips.rooted import Archive
from torchkeep.wording import counted

CONTAINER = "torch-package"

_DATA, _SCRIPT = ".data/", ".data/ts_code/"
_RECORDS = (*OWN_RECORDS, ".data/extern_modules", ".data/python_version")
_OWN = re.compile(
    r"\.data/\d+\.storage|\.data/ts_code/\d+/(data|constants)\.pkl|\.data/ts_code/code/.+\.py"
    r"|\.data/ts_code/code/.+\.py\.debug_pkl"
)
_GRAPH_MODULE = "torch.fx.graph_module.reduce_package_graph_module"
_SCRIPT_MODULE = "torch.jit._script.unpackage_script_module"
_PICKLE_START = b"\x80"


def describe(archive: Archive) -> Contents:
    """Return what the package holds: its directory, its pickles and its code are read."""
    return _Reading(archive).describe()


class _Reading:
    """One reading of a package."""

    def __init__(self, archive: Archive) -> None:
        check_packing(archive)
        self.archive = archive
        self.names = archive.names()
        self.pickles = ArchivePickles(archive)
        self.members = Members(archive)
        self.findings = odd_records(archive, _is_known, _RECORDS)
        self.code = Code({}, {})
        self.scripts: dict[str, Value] = {}
        self.rebuilt: dict[int, Value] = {}
        self.storage = self.pickles.storages_in(_DATA, ".storage")

    def describe(self) -> Contents:
        if any(name.startswith(_SCRIPT) for name in self.names):
            self.code = read_code(self.archive, f"{_SCRIPT}code/")
            self.findings.append(PROGRAM)
        root = Files()
        for name in self.names:
            if not name.startswith(_DATA) and not name.endswith(".py"):
                value = self.read_resource(name)
                if value is not None:
                    root[name] = value
        modules = self.read_modules()
        names = tuple(dict.fromkeys((*self.pickles.names, *self.members.names)))
        extern = self.read_text(".data/extern_modules").split()
        facts = {"extern_modules": ", ".join(extern), "python_version": self.read_python()}
        return Contents(
            path=self.archive.file.path,
            nbytes=self.archive.file.nbytes,
            container=CONTAINER,
            root=root,
            metadata={**self.pickles.facts, **{key: text for key, text in facts.items() if text}},
            pickle_protocol=max(
                (p for p in (self.pickles.protocol, self.members.protocol) if p is not None),
                default=None,
            ),
            globals=names,
            sources={**self.code.sources, **modules, **class_sources(modules, names)},
            findings=(
                *self.archive.directory.findings,
                *self.findings,
                *dict.fromkeys(self.pickles.findings),
                *self.members.findings,
            ),
            kind=_kind(len(root), len(modules), extern),
            members=tuple(self.members.contents.values()),
        )

    # --- Code and texts ---------------------------------------------------------------------

    def read_modules(self) -> dict[str, str]:
        """Return the source code by the dotted name of its module."""
        modules = {}
        for name in self.names:
            if name.endswith(".py") and not name.startswith(_DATA):
                path = PurePosixPath(name).with_suffix("")
                parts = path.parts[:-1] if path.name == "__init__" else path.parts
                modules[".".join(parts)] = self.archive.read(name).decode("utf-8", "replace")
        if modules:
            files = counted(len(modules), "file")
            text = f"importing from the package runs its code ({files} of Python)"
            self.findings.append(Finding("source-code", "needs-trust", next(iter(modules)), text))
        return modules

    def read_text(self, name: str) -> str:
        """Return a record of PyTorch's own that is a text; empty if it is not there."""
        record = self.archive.record(name)
        if record is None:
            return ""
        self.archive.limits.check("header_nbytes", max(record.nbytes, record.packed_nbytes))
        return self.archive.read(name).decode("utf-8", "replace")

    def read_python(self) -> str:
        return self.read_text(".data/python_version").strip()[:_LONGEST_FACT]

    # --- Pickles ----------------------------------------------------------------------------

    def read_resource(self, name: str) -> Value:
        """Return what a pickle, or a file of another kind, holds; None for anything else."""
        record = self.archive.directory.records[self.archive.root + name]
        if not record.nbytes or name in _RECORDS or name.endswith("/"):
            return None
        if self.archive.file.read_at(record.offset, 1) != _PICKLE_START:
            return self.members.add(name, needed=False)
        try:
            return self.pickles.run(name, self.load)
        except (DamagedFile, LimitReached, UnsupportedContent):
            if PurePosixPath(name).suffix in _PICKLE_SUFFIXES:
                raise
            # Its name does not say that it is a pickle: it may be any bytes.
            return self.members.add(name, needed=False)

    def load(self, pid: Value) -> Value:
        """Return the storage that a persistent id names, or what it would have PyTorch rebuild."""
        if not isinstance(pid, tuple) or not pid or pid[0] != "reduce_package":
            return self.storage(pid)
        number = pid[1] if len(pid) == 4 and isinstance(pid[1], int) else None
        if number in self.rebuilt:
            return self.rebuilt[number]
        value = self.rebuild(*pid[-2:]) if len(pid) in (3, 4) else None
        if value is None:
            text = "a persistent id of the package makes no sense"
            self.findings.append(Finding("persistent-id", "ambiguous", "", text))
        if number is not None:
            self.rebuilt[number] = value
        return value

    def rebuild(self, function: Value, args: Value) -> Value:
        """Return what a function would rebuild from its arguments; nothing is called."""
        if not isinstance(function, Global) or not isinstance(args, tuple):
            return None
        if str(function) == _GRAPH_MODULE and args and isinstance(args[0], dict):
            # The first argument becomes the module's attributes.
            return Object(function, args[1:], state=args[0])
        if str(function) == _SCRIPT_MODULE and len(args) == 1 and isinstance(args[0], str):
            if args[0] not in self.scripts:
                self.scripts[args[0]] = self.read_script(args[0])
            return self.scripts[args[0]]
        return Object(function, args)

    def read_script(self, number: str) -> Value:
        """Return the TorchScript module of this number; None if there is none."""
        place = f"{_SCRIPT}{number}/"
        storages = self.pickles.storages_in(_DATA)
        if f"{place}data.pkl" not in self.names:
            return None
        root = self.pickles.run(f"{place}data.pkl", storages, calls=SCRIPT_CALLS)
        beside = {}
        if f"{place}constants.pkl" in self.names:
            constants = self.pickles.run(f"{place}constants.pkl", storages, calls=SCRIPT_CALLS)
            beside = {"CONSTANTS": named_constants(constants)} if constants else {}
        sort_modules([root, beside], self.code.classes, self.archive.file.nbytes)
        return with_attributes(root, beside)


_LONGEST_FACT = 64
_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle"})
_MOST_EXTERN = 8


def _kind(num_pickles: int, num_modules: int, extern: list[str]) -> str:
    roots = list(dict.fromkeys(name.partition(".")[0] for name in extern))
    shown = ", ".join(roots[:_MOST_EXTERN]) + (", ..." if len(roots) > _MOST_EXTERN else "")
    files = "file" if num_modules == 1 else "files"
    objects = "object" if num_pickles == 1 else "objects"
    text = f"package (torch.package) of {num_pickles} {objects} and {num_modules} {files} of Python"
    return f"{text}; needs {shown}"[:_LONGEST_KIND] if roots else text


_LONGEST_KIND = 200


def class_sources(modules: dict[str, str], names: tuple[Global, ...]) -> dict[str, str]:
    r"""Return the source of each class that is named and defined in one of the modules.

    >>> class_sources({"m": "x = 1\nclass A:\n    pass\ny = 2\n"}, (Global("m", "A"),))
    {'m.A': 'class A:\n    pass\n'}
    """
    sources = {}
    for name in names:
        text = modules.get(name.module)
        if text is not None and name.name.isidentifier():
            found = _class_text(text, name.name)
            if found:
                sources[str(name)] = found
    return sources


_OUTSIDE = re.compile(r"^[^\s#)\]}]", re.MULTILINE)


def _class_text(text: str, name: str) -> str:
    """Return the lines of a class at the top of a module; empty if it has none of this name."""
    found = re.search(rf"^class {name}\b", text, re.MULTILINE)
    if found is None:
        return ""
    end = _OUTSIDE.search(text, found.end())
    return text[found.start() : len(text) if end is None else end.start()]


def _is_known(name: str) -> bool:
    if is_native(name):
        return False
    return name in _RECORDS or not name.startswith(_DATA) or bool(_OWN.fullmatch(name))
