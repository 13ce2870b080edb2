"""What is fuzzed: the pickle machine, each reader, folders, the whole of `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

from folders import Folders

import torchkeep.identify as identify_package
from torchkeep import formats
from torchkeep.contents import Contents, TensorEntry
from torchkeep.errors import FileProblem
from torchkeep.files import MemoryFile
from torchkeep.formats import READERS, examine, examine_open
from torchkeep.formats.format import Format
from torchkeep.formats.torch.unpickling import run_torch_pickle
from torchkeep.formats.zips import kinds
from torchkeep.identify import identify
from torchkeep.identify.tree import Budget, named_tensors
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.source import ByteSource

LIMITS = Limits(
    pickle_nbytes=1 << 24,
    copied_nbytes=1 << 24,
    steps=100_000,
    places=100_000,
    records=10_000,
    header_nbytes=1 << 20,
)
"""Smaller than the default, so that an input that asks for much is answered soon."""


def import_readers() -> None:
    """Import what readers import when its turn comes: later it would not be instrumented."""
    for package in (formats, identify_package):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)


def fuzz_machine(data: bytes) -> None:
    """Run the bytes as a pickle, tensors and all."""
    try:
        run_torch_pickle(ByteSource.of_bytes(data), limits=LIMITS)
    except FileProblem as problem:
        check_problem(problem)


def fuzz_reader(reader: Format, data: bytes) -> None:
    """Take the bytes for a file of one format, whatever its start says."""
    try:
        contents = reader.describe(MemoryFile(data, Path("fuzzed")), LIMITS)
    except FileProblem as problem:
        check_problem(problem)
        return
    check_contents(contents, len(data))


def fuzz_inspect(data: bytes) -> None:
    """Inspect the bytes as whatever they look like, and spell it out as JSON."""
    contents = examine_open(MemoryFile(data, Path("fuzzed")), LIMITS)
    check_contents(contents, len(data))
    try:
        identify(contents, LIMITS).to_json(tensors=True)
    except FileProblem as problem:
        check_problem(problem)


def fuzz_folder(data: bytes, folders: Folders) -> None:
    """Inspect a folder one of whose files has the bytes, and that file by itself."""
    made = folders.replaced(data)
    if made is None:
        return
    folder, file, before = made
    try:
        for path in (folder, file):
            identify(examine(path, limits=LIMITS), LIMITS).to_json(tensors=True)
    except FileProblem as problem:
        check_problem(problem)
    finally:
        file.write_bytes(before)


def check_problem(problem: FileProblem) -> None:
    if "\n" in problem.problem or not problem.problem:
        raise AssertionError(f"a message of several lines, or of none: {problem!r}")


def check_contents(contents: Contents, nbytes: int) -> None:
    """Check that every tensor lies within its storage, and every storage within the file."""
    if contents.problem is not None:
        check_problem(contents.problem)
    try:
        tensors = named_tensors(contents.root, Budget.for_contents(contents, LIMITS))
    except FileProblem:
        return
    for item in tensors:
        check_entry(item.entry, nbytes)


def check_entry(entry: TensorEntry, nbytes: int) -> None:
    storage = entry.storage
    if storage.offset is not None and not 0 <= storage.offset <= nbytes - storage.nbytes:
        raise AssertionError(f"a storage outside of the file: {storage}")
    if storage.data is not None and len(storage.data) != storage.nbytes:
        raise AssertionError(f"a storage of another size: {storage.nbytes}")
    if storage.device != "meta" and entry.nbytes_needed > storage.nbytes:
        raise AssertionError(f"a tensor outside of its storage: {entry.shape} {entry.stride}")
    for _, part in entry.parts:
        check_entry(part, nbytes)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "machine": fuzz_machine,
    "inspect": fuzz_inspect,
    "folder": partial(fuzz_folder, folders=Folders()),
    **{reader.name: partial(fuzz_reader, reader) for reader in READERS},
    "zip": partial(fuzz_reader, kinds.FORMAT),  # which is called archive as well
}
