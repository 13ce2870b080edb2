"""TorchScript programs: the zip archives of `torch.jit.save`, for servers and for phones.

Layout, since PyTorch 1.3, below one root folder:

    <root>/data.pkl, data/<n>             the module as a pickle of C++, and its tensors' bytes
    <root>/constants.pkl, constants/<n>   the tensors that stand in the code as `CONSTANTS.c<n>`
    <root>/code/__torch__/*.py            the code of each class (often compressed)
    <root>/code/__torch__/*.py.debug_pkl  where the code came from, as a pickle
    <root>/traced_inputs.pkl, traced_inputs/<n>   the inputs that a module was traced with
    <root>/extra/*                        files of the user's
    <root>/version, byteorder, .data/serialization_id

An archive for phones (`_save_for_lite_interpreter`) has the program as instructions besides:

    <root>/bytecode.pkl, bytecode/<n> or constants/<n>.storage, mobile_debug_handles.pkl

PyTorch's C++ API (`torch::save`) writes the same archive with classes that have no methods; it is
described as `torch-cpp`. Archives of PyTorch 1.0 to 1.2 have a `model.json`: see `torch_cpp`.

The root of the tree is the module itself, with its own and its submodules' tables sorted as in a
pickled `nn.Module`; constants and traced inputs are attributes of it. Constants of the instructions
are listed where they hold tensors.

Limits: code is text; what a class's own `__setstate__` would make of a state is not known, and the
state itself is shown. Modules of the flatbuffer format (`.ff`) are no archives.

Source: torch/csrc/jit/serialization/export_module.cpp and import.cpp,
torch/csrc/jit/mobile/import.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torchkeep.contents import Contents, Finding, Object, TensorEntry, Value
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.formats.machine_code import is_native
from torchkeep.formats.programs.inner_files import Members
from torchkeep.formats.programs.torchscript_code import Code, parse_code
from torchkeep.formats.programs.torchscript_modules import (
    SCRIPT_CALLS,
    is_script_name,
    sort_modules,
)
from torchkeep.formats.torch.archive_pickles import ArchivePickles, require
from torchkeep.formats.zips.records import (
    OWN_RECORDS,
    check_packing,
    odd_records,
)
from torchkeep.formats.zips.rooted import Archive

LITE_CONTAINER = "torchscript-lite"
CONTAINER = "torchscript"

PROGRAM = Finding(
    "program",
    "needs-trust",
    "code",
    "the file is a program: torch.jit.load compiles its code, and may run some of it at once",
)
"""What is to be said of every archive that has code in it."""

_PICKLES = ("data", "constants", "bytecode", "traced_inputs", "mobile_debug_handles")
_RECORDS = (*OWN_RECORDS, *(f"{name}.pkl" for name in _PICKLES))
_STORAGE = re.compile(r"(data|constants|bytecode|traced_inputs)/\d+(\.storage)?")
_LONGEST_TEXT = 1 << 16
_MOST_TEXT = 1 << 20


def describe(archive: Archive) -> Contents:
    """Return what the archive holds: its directory, its pickles and its code are read."""
    return _Reading(archive).describe()


class _Reading:
    """One reading of a TorchScript archive."""

    def __init__(self, archive: Archive) -> None:
        check_packing(archive)
        self.archive = archive
        self.names = archive.names()
        self.pickles = ArchivePickles(archive)
        self.members = Members(archive)
        self.bytecode_version: int | None = None

    def describe(self) -> Contents:
        code = read_code(self.archive, "code/")
        root = self.read_module(code)
        for name in self.names:
            if name.endswith(".debug_pkl") or name == "mobile_debug_handles.pkl":
                run_aside(self.pickles, name)
        extra = read_extra(self.archive, self.members)
        main = root if isinstance(root, Object) else None
        findings = odd_records(self.archive, _is_known, _RECORDS)
        if not is_cpp_archive(main, code) or "bytecode.pkl" in self.names:
            findings.append(PROGRAM)
        return Contents(
            path=self.archive.file.path,
            nbytes=self.archive.file.nbytes,
            container=self.container(main, code),
            root=root,
            metadata={**self.pickles.facts, **extra},
            pickle_protocol=self.pickles.protocol,
            globals=tuple(dict.fromkeys((*self.pickles.names, *self.members.names))),
            sources=code.sources,
            findings=(
                *self.archive.directory.findings,
                *findings,
                *(item for item in dict.fromkeys(self.pickles.findings) if not is_enum(item, code)),
                *self.members.findings,
            ),
            kind=self.kind(main, code),
            members=tuple(self.members.contents.values()),
        )

    def read_module(self, code: Code) -> Value:
        """Return the module, with whatever else has tensors as attributes of it."""
        if "bytecode.pkl" not in self.names:
            require(self.archive, "data.pkl")
        root = self.run("data", "data/") if "data.pkl" in self.names else None
        constants = self.run("constants", "constants/")
        beside = {
            "CONSTANTS": named_constants(constants),
            "bytecode": self.read_bytecode(),
            "traced_inputs": self.run("traced_inputs", "traced_inputs/"),
        }
        beside = {name: value for name, value in beside.items() if value}
        sort_modules([root, *beside.values()], code.classes, self.archive.file.nbytes)
        return with_attributes(root, beside)

    def run(self, name: str, folder: str) -> Value:
        """Return what one of the pickles holds; None if it is not there."""
        if f"{name}.pkl" not in self.names:
            return None
        return self.pickles.run(f"{name}.pkl", self.pickles.storages_in(folder), calls=SCRIPT_CALLS)

    def read_bytecode(self) -> dict[str, Value]:
        """Return the constants of those methods that have tensors among them."""
        has_own = any(name.startswith("bytecode/") for name in self.names)
        program = self.run("bytecode", "bytecode/" if has_own else "constants/")
        if not isinstance(program, tuple):
            return {}
        self.bytecode_version = program[0] if program and isinstance(program[0], int) else None
        methods = (item for item in program if isinstance(item, tuple) and len(item) >= 2)
        tables = {str(name): _constants_of(body) for name, body, *_ in methods}
        return {name: table for name, table in tables.items() if table}

    def container(self, main: Object | None, code: Code) -> str:
        if "bytecode.pkl" in self.names:
            return LITE_CONTAINER
        return "torch-cpp" if is_cpp_archive(main, code) else CONTAINER

    def kind(self, main: Object | None, code: Code) -> str:
        """Return what the archive is in a few words."""
        if self.container(main, code) == "torch-cpp":
            return "values saved by PyTorch's C++ API"
        what = "TorchScript program"
        if "bytecode.pkl" in self.names:
            version = self.bytecode_version
            what += f" for phones (bytecode of version {version})" if version else " for phones"
        if main is None:
            return what
        known = code.classes.get(main.class_path)
        methods = ", ".join(known.methods[:_MOST_METHODS]) if known else ""
        return f"{what}: {main.class_path.rpartition('.')[2]}" + (
            f" with {methods}" if methods else ""
        )


_MOST_METHODS = 5


def read_code(archive: Archive, folder: str) -> Code:
    """Return what the code below a folder says.

    Raises:
        DamagedFile, LimitReached, UnsupportedContent: as `read_record` does.
    """
    texts = {}
    for name in archive.names():
        if name.startswith(folder) and name.endswith(".py"):
            module = name.removeprefix(folder).removesuffix(".py").replace("/", ".")
            texts[module] = archive.read(name).decode("utf-8", "replace")
    return parse_code(texts)


def read_extra(archive: Archive, members: Members) -> dict[str, str]:
    """Return the user's files in an archive that are short texts; others are looked into."""
    texts: dict[str, str] = {}
    room = _MOST_TEXT
    for name in archive.names():
        if not name.startswith("extra/"):
            continue
        text = read_text(archive, name)
        if text is None:
            members.add(name, needed=False)
        elif len(text) <= room:
            room -= len(text)
            texts[name] = text
    return texts


def read_text(archive: Archive, name: str) -> str | None:
    """Return a record as text; None if it is long, or no text."""
    record = archive.directory.records[archive.root + name]
    if record.nbytes > _LONGEST_TEXT:
        return None
    try:
        text = archive.read(name).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if "\0" not in text else None


def run_aside(pickles: ArchivePickles, name: str) -> None:
    """Run a pickle for what it names. A broken one is a finding: nothing depends on it."""
    try:
        pickles.run(name, calls=SCRIPT_CALLS)
    except (DamagedFile, LimitReached, UnsupportedContent) as problem:
        if problem.seen is not None:
            pickles.names.update(dict.fromkeys(problem.seen.globals))
        text = f"the pickle can't be read: {problem.problem}"
        pickles.findings.append(Finding("broken-pickle", "ambiguous", name, text))


def named_constants(constants: Value) -> dict[str, Value]:
    """Return the constants under the names that the code has for them."""
    items = constants if isinstance(constants, tuple | list) else ()
    return {f"c{index}": item for index, item in enumerate(items)}


def with_attributes(root: Value, beside: Mapping[str, Value]) -> Value:
    """Return the tree with more values in it, as attributes of the module if it is one."""
    if not beside:
        return root
    if isinstance(root, Object) and isinstance(root.state, dict):
        root.state = {**root.state, **beside}
        return root
    return {**({} if root is None else {"data": root}), **beside}


def is_cpp_archive(root: Object | None, code: Code) -> bool:
    """Whether the archive was saved by the C++ API: its modules have no class and no methods."""
    return (
        root is not None
        and root.class_path.rpartition(".")[2] == "Module"
        and is_script_name(root.callee)
        and not any(known.methods for known in code.classes.values())
        and all(name.rpartition(".")[2] == "Module" for name in code.sources)
    )


def is_enum(finding: Finding, code: Code) -> bool:
    """Whether a finding is about a member of an enum, which C++ pickles as a call without a tuple.

    Source: torch/csrc/jit/serialization/pickler.cpp (`pushIValueImpl`, `isEnum`).
    """
    has_enums = any(known.base == "Enum" for known in code.classes.values())
    return has_enums and finding.rule == "malformed-call" and "without a tuple" in finding.text


def _constants_of(body: Value) -> Value:
    """Return the constants of one method's instructions, if there are tensors among them."""
    if not isinstance(body, tuple):
        return None
    for item in body:
        if isinstance(item, tuple) and len(item) == 2 and item[0] == "constants":
            table = item[1]
            return table if isinstance(table, tuple) and _has_tensor(table) else None
    return None


def _has_tensor(values: tuple[Value, ...]) -> bool:
    return any(
        isinstance(item, TensorEntry)
        or (isinstance(item, list | tuple) and any(isinstance(x, TensorEntry) for x in item))
        for item in values
    )


def _is_known(name: str) -> bool:
    if name.startswith("code/"):
        return name.endswith((".py", ".debug_pkl"))
    if name.startswith("extra/"):
        return not is_native(name)
    return name in _RECORDS or bool(_STORAGE.fullmatch(name))
