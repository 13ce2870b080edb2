"""Which kind of folder a path is. `FOLDER_KINDS` is tried in order.

To add a kind: a module with a `FolderKind`, a line here, tests in tests/formats/folders, and a row
in docs/formats.md. Some files stand for a folder: an index, the metadata of a distributed
checkpoint; see `stands_for`.
"""

from __future__ import annotations

from pathlib import Path

from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, FileMissing, FileProblem, FileUnreadable
from torchkeep.files import InputFile
from torchkeep.formats.folders import dcp, deepspeed, model_folders, own_folders, sharded
from torchkeep.formats.folders.folder import FileBudget, FolderKind, list_folder
from torchkeep.pickles.limits import Limits

FOLDER_KINDS: tuple[FolderKind, ...] = (
    own_folders.CHECKPOINT,
    own_folders.RUN,
    dcp.KIND,
    deepspeed.KIND,
    model_folders.KIND,
)
"""Every kind of folder; the last one takes whatever has model files in it."""


def examine_folder(
    path: Path, limits: Limits, *, level: int = 0, budget: FileBudget | None = None
) -> Contents:
    """Return what a folder holds; why no model can be read from it is its `problem`.

    Args:
        path: the folder.
        limits: bounds of the work that one file in it may cause.
        level: how many folders are above it, up to the one that was asked for.
        budget: how many files may still be looked into.

    Raises:
        FileMissing: there is no such folder.
        FileUnreadable: it may not be listed.
    """
    try:
        folder = list_folder(path, limits, level=level, budget=budget)
    except (FileMissing, FileUnreadable):
        raise
    except FileProblem as problem:
        return Contents(path, 0, model_folders.KIND.name, None, problem=problem.in_file(path))
    kind = next(kind for kind in FOLDER_KINDS if kind.matches(folder))
    try:
        contents = kind.describe(folder)
    except FileProblem as problem:
        contents = _as_far_as_seen(path, folder.nbytes, kind, problem)
    if contents.problem is not None:
        contents.problem.in_file(path)
    return contents


def _as_far_as_seen(path: Path, nbytes: int, kind: FolderKind, problem: FileProblem) -> Contents:
    if isinstance(problem, FileMissing | FileUnreadable):  # a file in it, not the folder
        problem = DamagedFile(problem.problem, advice=problem.advice, path=problem.path)
    seen = problem.seen
    return Contents(
        path=path,
        nbytes=nbytes,
        container=kind.name,
        root=None,
        globals=seen.globals if seen else (),
        findings=seen.findings if seen else (),
        problem=problem,
    )


def stands_for(file: InputFile, head: bytes, limits: Limits) -> Contents | None:
    """Return what a file and its neighbours amount to, if it is there to describe them.

    Args:
        file: the file, open.
        head: its first bytes.
        limits: bounds of the work.

    Returns:
        None for any other file.
    """
    is_metadata = dcp.is_metadata(head)
    if not is_metadata and not sharded.is_index(file.path.name, head):
        return None
    try:
        folder = list_folder(file.path.parent, limits)
    except FileProblem:  # a file may be readable in a folder that may not be listed
        return None
    if is_metadata:
        return dcp.describe_metadata_file(folder, file.path.name)
    return sharded.describe_index(folder, file.path.name)[0]
