"""A folder as data: what lies in it, and how one file in it is looked at.

A folder is not trusted more than a file is. It is listed once, pipes and devices in it are never
opened, links to folders are not followed, and a name that one file gives for another is used only
if it stays in the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from torchkeep.contents import Contents, Finding
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    FileProblem,
    FileUnreadable,
    LimitReached,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.files import InputFile, Scratch
from torchkeep.formats.containers import CONTAINERS
from torchkeep.pickles.limits import Limits
from torchkeep.wording import counted

MOST_FILES = 2_000
"""Files that one call looks into, those in folders within the folder included."""
MOST_NAMES = 200_000
"""Names that it lists, likewise."""
_HEAD_NBYTES = 512
MODEL_SUFFIXES = tuple(
    ".bin .ckpt .gguf .h5 .npz .onnx .pkl .pt .pt2 .pte .pth .safetensors .tar .torch".split()
)
"""A file with such a name is told of even if there is no model in it."""


@dataclass(slots=True)
class FileBudget:
    """How much of a folder, and of the folders within, may still be looked at."""

    left: int = MOST_FILES
    """Files that may be looked into."""
    names: int = MOST_NAMES
    """Names that may be listed."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, listed."""

    path: Path
    """Where it is, as it was asked for."""
    files: dict[str, int]
    """Sizes of the regular files in it by name, in the order of the names."""
    folders: tuple[str, ...]
    """The folders in it; links to folders are among the `others`."""
    others: tuple[str, ...]
    """What is neither: pipes, devices, links to nowhere or to folders."""
    limits: Limits
    """Bounds of the work that one file in it may cause."""
    level: int = 0
    """How many folders are above it, up to the one that was asked for."""
    budget: FileBudget = field(default_factory=FileBudget)
    """What may still be looked into; shared with the folders within."""

    scratch: Scratch | None = None
    """Where models are kept that lie packed in an archive, if they are to be read."""

    def inner(self, name: str) -> Folder:
        """Return a folder in it, listed.

        Raises:
            FileProblem: as `list_folder` does.
        """
        return list_folder(
            self.path / name,
            self.limits,
            level=self.level + 1,
            budget=self.budget,
            scratch=self.scratch,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the files that lie directly in it."""
        return sum(self.files.values())

    def head(self, name: str) -> bytes:
        """Return the first bytes of a file; nothing if it can't be read."""
        try:
            with InputFile(self.path / name) as file:
                return file.read_at(0, min(file.nbytes, _HEAD_NBYTES))
        except FileProblem:
            return b""

    def read(self, name: str, most_nbytes: int) -> bytes:
        """Return a small file.

        Raises:
            DamagedFile: it is gone, or may not be read.
            LimitReached: it has more than `most_nbytes` bytes.
        """
        try:
            with InputFile(self.path / name) as file:
                if file.nbytes > most_nbytes:
                    raise LimitReached(
                        f"it has {file.nbytes:,} bytes, and {most_nbytes:,} are read at most"
                    )
                return file.read_at(0, file.nbytes)
        except (FileMissing, FileUnreadable) as problem:
            raise DamagedFile(problem.problem) from None

    def examine(self, name: str) -> Contents:
        """Return what a file in the folder holds, whatever that is; counted in the budget.

        If it vanished or may not be read, that is its `problem`.
        """
        # The formats use this module: it can meet them only when it is run.
        from torchkeep.formats import examine_open

        self.budget.left -= 1
        path = self.path / name
        try:
            with InputFile(path, scratch=self.scratch) as file:
                return examine_open(file, self.limits)
        except FileProblem as problem:
            damaged = DamagedFile(problem.problem, advice=problem.advice, path=path)
            return Contents(path, self.files.get(name, 0), "unknown", None, problem=damaged)


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder.

    Attributes:
        name: the container's name in reports.
        matches: whether a folder is of this kind; looks at names, and at the start of few files.
        describe: what the folder holds; raises `FileProblem` if it is not what it seemed.
        own_folders: the folders in it that `describe` tells of; the others are told of beside it.
            None if it tells of all of them.
    """

    name: str
    matches: Callable[[Folder], bool]
    describe: Callable[[Folder], Contents]
    own_folders: Callable[[Folder], Collection[str]] | None = lambda _: ()


def list_folder(
    path: Path,
    limits: Limits,
    *,
    level: int = 0,
    budget: FileBudget | None = None,
    scratch: Scratch | None = None,
) -> Folder:
    """Return what lies in a folder.

    Raises:
        FileMissing: there is no such folder.
        FileUnreadable: it may not be listed.
        LimitReached: it has too many names.
    """
    budget = budget or FileBudget()
    files: dict[str, int] = {}
    folders: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                budget.names -= 1
                if budget.names < 0:
                    raise LimitReached(f"there are more than {MOST_NAMES:,} files in the folder")
                _sort_in(entry, files, folders, others)
    except OSError as error:
        raise _unlistable(path, error) from None
    return Folder(
        path=path,
        files=dict(sorted(files.items())),
        folders=tuple(sorted(folders)),
        others=tuple(sorted(others)),
        limits=limits,
        level=level,
        budget=budget,
        scratch=scratch,
    )


def _sort_in(
    entry: os.DirEntry[str], files: dict[str, int], folders: list[str], others: list[str]
) -> None:
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere or in a circle, or it vanished
        others.append(entry.name)
        return
    if stat.S_ISREG(status.st_mode):
        files[entry.name] = status.st_size
    elif stat.S_ISDIR(status.st_mode) and not entry.is_symlink():
        folders.append(entry.name)
    else:
        others.append(entry.name)


def _unlistable(path: Path, error: OSError) -> FileProblem:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileMissing("there is no such folder", advice="Check the path.", path=path)
    if isinstance(error, PermissionError):
        return FileUnreadable("the folder may not be listed", advice="Check its mode.", path=path)
    reason = error.strerror or str(error)
    return FileUnreadable(f"the folder can't be listed ({reason})", path=path)


def look_into(folder: Folder, names: Sequence[str]) -> tuple[dict[str, Contents], list[Finding]]:
    """Return which of these files in a folder are to be told of, and whether any was left out.

    That are those with a model in them or with a model's name, and those that do harm.
    """
    members: dict[str, Contents] = {}
    for done, name in enumerate(names):
        if folder.budget.left <= 0:
            num = len(names) - done
            told = f"{counted(num, 'file')} {'was' if num == 1 else 'were'} not looked into"
            text = f"{told}, since {MOST_FILES:,} are at most: {listed(names[done:])}"
            return members, [Finding("not-looked-into", "ambiguous", "", text)]
        contents = folder.examine(name)
        if is_told_of(name, contents):
            members[name] = contents
    return members, []


def is_told_of(name: str, contents: Contents) -> bool:
    """Whether a file has a model in it or a model's name, or does harm."""
    if contents.problem is None or contents.container == "git-lfs-pointer":
        return True
    if "text" in contents.metadata:  # settings that name what is to be called; see `other_views`
        return True
    if any(finding.severity != "note" for finding in contents.findings):
        return True
    if isinstance(contents.problem, NotAModelFile | UnsupportedContent):
        is_named_so = name.endswith(MODEL_SUFFIXES)
        return is_named_so or CONTAINERS[contents.container].is_model
    return True


def unreadable(members: Mapping[str, Contents]) -> list[Finding]:
    """Return a finding for each file, by its name in the folder, that can't be read."""
    return [
        Finding("unreadable-file", _severity(member.problem), name, member.problem.problem)
        for name, member in members.items()
        if member.problem is not None
    ]


def _severity(problem: FileProblem) -> Literal["note", "ambiguous", "damaged"]:
    if isinstance(problem, UnsupportedContent):
        return "note"
    return "ambiguous" if isinstance(problem, LimitReached) else "damaged"


def way_out(folder: Path, name: str) -> Finding | None:
    """Return what is wrong with a file's name that stands in another file; None if nothing is.

    A name may not lead out of the folder, neither by itself nor through a link. A link into the
    `blobs` of a Hugging Face cache is fine: that is how its folders are made.
    """
    if _leaves(name):
        text = f"it names the file {shown(name)}, which is not in the folder; it was not opened"
        return Finding("path-outside", "dangerous", "", text)
    base, real = Path(os.path.realpath(folder)), Path(os.path.realpath(folder / name))
    if real.is_relative_to(base) or _is_hub_blob(base, real):
        return None
    text = f"{shown(name)} is a link out of the folder; it was not followed"
    return Finding("link-outside", "ambiguous", "", text)


def _leaves(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    try:
        os.fsencode(name)
    except UnicodeError:
        return True
    return (
        not name
        or "\0" in name
        or ".." in (*posix.parts, *windows.parts)
        or posix.is_absolute()
        or bool(windows.drive or windows.root)
    )


def _is_hub_blob(base: Path, real: Path) -> bool:
    """Whether a file is a blob of the cache that the folder is a snapshot of.

    Layout: `models--x--y/snapshots/<revision>/<name>`, each a link to `models--x--y/blobs/<hash>`.
    """
    parts = base.parts
    places = [index for index, part in enumerate(parts) if part == "snapshots"]
    return any(real.parent == Path(*parts[:index], "blobs") for index in places)


def shown(name: str) -> str:
    """Return a name as it can stand in a message."""
    return repr(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}...")


def listed(names: Iterable[str]) -> str:
    """Return the first few names and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    every = list(names)
    more = f" and {len(every) - 3:,} more" if len(every) > 3 else ""
    return ", ".join(map(shown, every[:3])) + more


_LONGEST_SHOWN = 120
