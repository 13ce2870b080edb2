"""Files inside an archive, each described as if it lay on the disk by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchkeep.contents import Contents, Finding, Global, Value
from torchkeep.errors import FileProblem, LimitReached, UnsupportedContent
from torchkeep.formats.archives.bodies import StoredMember, nesting_of
from torchkeep.formats.containers import CONTAINERS
from torchkeep.formats.zips.rooted import Archive
from torchkeep.formats.zips.structs import STORED


def describe_record(archive: Archive, name: str) -> Contents:
    """Return what the record of this name below the root holds, whatever it is.

    A record that can't be read has a `problem`; compressed ones are not looked into, since PyTorch
    compresses nothing but code, and archives in compressed archives unfold without end.
    """
    # The readers of all formats are above this module: it can meet them only when it is run.
    from torchkeep.formats import examine_open

    record = archive.directory.records[archive.root + name]
    path = Path(archive.file.path) / name
    outer = nesting_of(archive.file, archive.limits)
    problem: FileProblem | None = None
    if record.method != STORED:
        problem = UnsupportedContent(f"record {name!r} is compressed, and not looked into")
    elif outer.level >= archive.limits.archive_depth:
        problem = archive.limits.reached("archive_depth")
    if problem is not None:
        return Contents(path, record.nbytes, "unknown", None, problem=problem)
    nesting = replace(outer, level=outer.level + 1)
    inner = StoredMember(archive.file, record.offset, record.nbytes, path, nesting)
    return examine_open(inner, archive.limits)


class Members:
    """The files of an archive that were looked into, and what they name.

    Attributes:
        contents: each file's description by its record's name.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.contents: dict[str, Contents] = {}

    def add(self, name: str, *, needed: bool) -> Value:
        """Look into a record and return its tree; None if it has none.

        Args:
            name: the record below the archive's root.
            needed: whether it ought to be a file of values. Others are kept only if they are.
        """
        contents = describe_record(self._archive, name)
        if needed or CONTAINERS[contents.container].is_model or _is_packed(contents):
            self.contents[name] = contents
        return contents.root

    @property
    def names(self) -> tuple[Global, ...]:
        """Every name that the files mention."""
        return tuple(
            dict.fromkeys(name for item in self.contents.values() for name in item.globals)
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is odd about the files, each with the record that it is in."""
        return tuple(
            replace(finding, place=f"{name}: {finding.place}" if finding.place else name)
            for name, item in self.contents.items()
            for finding in item.findings
        )

    @property
    def protocol(self) -> int | None:
        """The highest protocol of a pickle in the files; None if there is none."""
        protocols = (item.pickle_protocol for item in self.contents.values())
        return max((item for item in protocols if item is not None), default=None)


def _is_packed(contents: Contents) -> bool:
    return isinstance(contents.problem, UnsupportedContent | LimitReached)
