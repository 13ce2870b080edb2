"""Which kind of folder a path is. `FOLDER_KINDS` is tried in order.

To add a kind: a module with a `FolderKind`, a line here, a row in `formats.containers`, tests in
tests/formats/folders, and a row in docs/formats.md. Some files stand for a folder: an index, the
metadata of a distributed checkpoint; see `stands_for`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, FileMissing, FileProblem, FileUnreadable
from torchkeep.files import InputFile, Scratch
from torchkeep.formats.folders import dcp, deepspeed, model_folders, sharded
from torchkeep.formats.folders.below import Below, look_below
from torchkeep.formats.folders.folder import (
    FileBudget,
    Folder,
    FolderKind,
    list_folder,
    unreadable,
)
from torchkeep.formats.joining import join_members
from torchkeep.formats.own import folders as own_folders
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
    path: Path,
    limits: Limits,
    *,
    budget: FileBudget | None = None,
    scratch: Scratch | None = None,
) -> Contents:
    """Return what a folder holds; why no model can be read from it is its `problem`.

    Args:
        path: the folder.
        limits: bounds of the work that one file in it may cause.
        budget: how many files may still be looked into.
        scratch: where models are kept that lie packed in an archive, if they are to be read.

    Raises:
        FileMissing: there is no such folder.
        FileUnreadable: it may not be listed.
    """
    try:
        folder = list_folder(path, limits, budget=budget, scratch=scratch)
    except (FileMissing, FileUnreadable):
        raise
    except FileProblem as problem:
        return Contents(path, 0, model_folders.KIND.name, None, problem=problem.in_file(path))
    return describe_listed(folder)


def describe_listed(folder: Folder) -> Contents:
    """Return what a folder that was listed holds, as `examine_folder` does."""
    kind = kind_of(folder)
    try:
        contents = kind.describe(folder)
    except FileProblem as problem:
        contents = _as_far_as_seen(folder, kind, problem)
    if kind.own_folders is not None:
        below = look_below(folder, (), without=kind.own_folders(folder))
        contents = _with_strangers(contents, below)
    if contents.problem is not None:
        contents.problem.in_file(folder.path)
    return contents


def is_plain(folder: Folder) -> bool:
    """Whether a folder is of no kind of its own: its files are all that there is to tell."""
    return kind_of(folder) is model_folders.KIND and not model_folders.is_model(folder)


def kind_of(folder: Folder) -> FolderKind:
    """Return the first kind that a folder is of."""
    return next(kind for kind in FOLDER_KINDS if kind.matches(folder))


def _with_strangers(contents: Contents, below: Below) -> Contents:
    """Add the folders within that do not belong to a kind of folder: they are judged as well."""
    members = below.members
    if not members and not below.findings:
        return contents
    findings = (*below.findings, *unreadable(members))
    joined = join_members(contents.path, 0, contents.container, members, findings=findings)
    return replace(
        contents,
        nbytes=contents.nbytes + below.nbytes,
        globals=tuple(dict.fromkeys((*contents.globals, *joined.globals))),
        findings=(*contents.findings, *joined.findings),
        members=(*contents.members, *joined.members),
    )


def _as_far_as_seen(folder: Folder, kind: FolderKind, problem: FileProblem) -> Contents:
    if isinstance(problem, FileMissing | FileUnreadable):  # a file in it, not the folder
        problem = DamagedFile(problem.problem, advice=problem.advice, path=problem.path)
    seen = problem.seen
    return Contents(
        path=folder.path,
        nbytes=folder.nbytes,
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
