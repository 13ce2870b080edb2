"""What lies in a folder and below it, file by file.

A folder within that is of a kind of its own (a checkpoint, shards, a run) is one member, described
as that. Of any other folder each file is a member, under its path.

Limits: folders are followed `MOST_LEVELS` deep, and as many files and names are looked at as the
budget has left, those under a model's name first. What is left out is a finding. Links to folders
are not followed; if models lie behind one, that is a finding, too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileProblem, LimitReached, NotAModelFile
from torchkeep.files import TEMPORARY_MARK
from torchkeep.formats.folders.folder import (
    MODEL_SUFFIXES,
    MOST_FILES,
    Folder,
    is_told_of,
    listed,
)
from torchkeep.wording import counted

MOST_LEVELS = 16
"""How deep folders are followed into folders."""
VERSION_CONTROL = frozenset({".git", ".hg", ".svn"})
"""Folders that hold a program's own data, and copies of what lies beside them."""
_MOST_LINKED_NAMES = 2_000
"""Names that are looked at behind a link to a folder."""


@dataclass(slots=True)
class Below:
    """What was met in a folder and below it."""

    files: dict[str, Contents] = field(default_factory=dict)
    """The files that are to be told of, by their paths from the folder."""
    folders: dict[str, Contents] = field(default_factory=dict)
    """The folders of a kind of their own, likewise."""
    findings: list[Finding] = field(default_factory=list)
    """What was left out, and why."""
    nbytes: int = 0
    """Bytes of the files in the folders below."""
    num_others: int = 0
    """Files that are not told of."""

    @property
    def members(self) -> dict[str, Contents]:
        """All that can be opened."""
        return {**self.files, **self.folders}


def look_below(folder: Folder, names: Sequence[str], *, without: Collection[str] = ()) -> Below:
    """Return what some files of a folder and all that is below it hold.

    Args:
        folder: the folder.
        names: the files in it that are looked into.
        without: the folders and files below it that somebody else tells of, by their paths.
    """
    walk = _Walk(folder, frozenset(without))
    walk.gather(folder, "", names)
    walk.describe_folders()
    walk.look_into_files()
    return walk.found


class _Walk:
    """What was listed so far, and what became of it."""

    def __init__(self, top: Folder, without: frozenset[str]) -> None:
        self.top = top
        self.without = without
        self.found = Below()
        self.files: list[tuple[Folder, str, str]] = []
        self.special: list[tuple[Folder, str]] = []

    def note_left_out(self, text: str) -> None:
        self.found.findings.append(Finding("not-looked-into", "ambiguous", "", text))

    # --- Listing --------------------------------------------------------------------------------

    def gather(self, top: Folder, start: str, names: Sequence[str]) -> None:
        """List the folders below, and sort them: those of a kind of their own, and the others."""
        waiting: list[tuple[Folder, str, Sequence[str]]] = [(top, start, names)]
        passed_over: list[str] = []
        deep: list[str] = []
        while waiting:
            folder, prefix, names = waiting.pop()
            paths = ((name, prefix + name) for name in names)
            self.files += [(folder, name, path) for name, path in paths if path not in self.without]
            self.check_links(folder, prefix)
            inner: list[tuple[Folder, str, Sequence[str]]] = []
            for name in folder.folders:
                path = prefix + name
                if name in VERSION_CONTROL:
                    passed_over.append(path)
                elif folder.level >= MOST_LEVELS:
                    deep.append(path)
                elif path not in self.without:
                    inner += self.listed(folder, name, path)
            waiting += reversed(inner)
        if deep:
            text = f"{counted(len(deep), 'folder')} more than {MOST_LEVELS} levels deep"
            self.note_left_out(f"not looked into: {text}: {listed(deep)}")
        if passed_over:
            text = f"a version control system's own, and not looked into: {listed(passed_over)}"
            self.found.findings.append(Finding("version-control", "note", "", text))

    def listed(
        self, folder: Folder, name: str, path: str
    ) -> list[tuple[Folder, str, Sequence[str]]]:
        """Return a folder, listed, whose files are told of one by one; nothing for any other."""
        from torchkeep.formats.folders.kinds import is_plain  # which has the kinds on its list

        try:
            inner = folder.inner(name)
        except LimitReached as problem:
            self.note_left_out(f"{path} and what follows: {problem.problem}")
            return []
        except FileProblem as problem:  # it vanished, or may not be listed
            finding = Finding("unreadable-folder", "damaged", path, problem.problem)
            self.found.findings.append(finding)
            return []
        if is_plain(inner) and TEMPORARY_MARK not in name:
            self.found.nbytes += inner.nbytes
            return [(inner, f"{path}/", list(inner.files))]
        self.special.append((inner, path))
        return []

    def check_links(self, folder: Folder, prefix: str) -> None:
        hiding = [
            prefix + name for name in folder.others if _hides_models(folder.path / name, self.top)
        ]
        if hiding:
            text = "models lie behind links to folders, which are not followed: " + listed(hiding)
            self.found.findings.append(Finding("link-to-folder", "ambiguous", "", text))

    # --- Looking into it ------------------------------------------------------------------------

    def describe_folders(self) -> None:
        from torchkeep.formats.folders.kinds import describe_listed

        for done, (folder, path) in enumerate(self.special):
            if folder.budget.left <= 0:
                rest = [path for _, path in self.special[done:]]
                self.note_left_out(_left_out(len(rest), "folder", rest))
                return
            folder.budget.left -= 1
            contents = describe_listed(folder)
            self.found.nbytes += contents.nbytes
            if _is_told_of(folder, contents):
                self.found.folders[path] = contents

    def look_into_files(self) -> None:
        """Look into the files, those first that are called as models are."""
        order = sorted(self.files, key=lambda item: not item[1].endswith(MODEL_SUFFIXES))
        members: dict[str, Contents] = {}
        for done, (folder, name, path) in enumerate(order):
            if folder.budget.left <= 0:
                rest = [path for _, _, path in order[done:]]
                self.note_left_out(_left_out(len(rest), "file", rest))
                break
            contents = folder.examine(name)
            if is_told_of(name, contents):
                members[path] = contents
        paths = (path for _, _, path in self.files)
        self.found.files = {path: members[path] for path in paths if path in members}
        self.found.num_others = len(self.files) - len(members)


def _is_told_of(folder: Folder, contents: Contents) -> bool:
    """Whether a folder has a model in it, or does harm."""
    severities = {finding.severity for finding in contents.findings}
    if TEMPORARY_MARK in folder.path.name:  # a save that was interrupted: what it lacks is no news
        return bool(severities - {"note", "damaged"} or contents.globals)
    return bool(severities - {"note"}) or not isinstance(contents.problem, NotAModelFile)


def _left_out(num: int, noun: str, paths: list[str]) -> str:
    were = "was" if num == 1 else "were"
    return (
        f"{counted(num, noun)} {were} not looked into, since {MOST_FILES:,} files of a folder are "
        f"at most: {listed(paths)}"
    )


def _hides_models(link: Path, top: Folder) -> bool:
    """Whether a link leads to a folder in which models may lie that are not seen otherwise."""
    try:
        if not link.is_symlink() or not link.is_dir():
            return False
        real = Path(os.path.realpath(link))
        if real.is_relative_to(os.path.realpath(top.path)):
            return False  # it is looked into where it lies
        return _may_have_models(real, top)
    except (OSError, ValueError):
        return True  # nobody can say


def _may_have_models(folder: Path, top: Folder) -> bool:
    """Whether a file under a model's name lies in a folder or below it, or it can't be told."""
    left = _MOST_LINKED_NAMES
    for _, folders, files in os.walk(folder):
        left -= len(folders) + len(files)
        top.budget.names -= len(folders) + len(files)
        if left < 0 or any(name.endswith(MODEL_SUFFIXES) for name in files):
            return True
    return False
