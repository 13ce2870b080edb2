"""A zip archive as PyTorch's programs see it: records below one root folder.

What the archive is (a saved object, a TorchScript program, an exported program, ...) is told by
records that only that kind has; see `zips.kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchkeep.contents import Contents
from torchkeep.files import Readable
from torchkeep.formats.format import imported
from torchkeep.formats.zips.directory import Directory, Record, read_directory
from torchkeep.formats.zips.directory import read_record as read_zip_record
from torchkeep.pickles.limits import Limits


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip archive, its directory read."""

    file: Readable
    directory: Directory
    root: str
    """The folder that everything of PyTorch's lies in, with its slash; may be empty."""
    limits: Limits

    def names(self) -> list[str]:
        """Return the names of the records below the root, in the directory's order."""
        start = len(self.root)
        return [name[start:] for name in self.directory.records if name.startswith(self.root)]

    def record(self, name: str) -> Record | None:
        """Return the record of this name below the root, or None."""
        return self.directory.records.get(self.root + name)

    def read(self, name: str) -> bytes:
        """Return the bytes of the record of this name below the root, which must be there.

        Raises:
            DamagedFile, LimitReached, UnsupportedContent: as `read_record` does.
        """
        return read_zip_record(self.file, self.directory.records[self.root + name], self.limits)


@dataclass(frozen=True, slots=True)
class ArchiveKind:
    """A kind of zip archive.

    Attributes:
        name: the container's name in reports, such as `torch-zip`.
        markers: records below the root folder, any of which only this kind has.
        reader: the function that describes such an archive, as `module:name`; it is imported when
            it is needed.
    """

    name: str
    markers: tuple[str, ...]
    reader: str

    def describe(self, archive: Archive) -> Contents:
        """Return what the archive holds."""
        contents: Contents = imported(self.reader)(archive)
        return contents


def open_archive(file: Readable, limits: Limits) -> tuple[Directory, tuple[str, ...]]:
    """Return the archive's directory, and the folders at its top (with a slash) and the top."""
    directory = read_directory(file, limits)
    folders = dict.fromkeys(
        name.partition("/")[0] + "/" for name in directory.records if "/" in name
    )
    return directory, (*folders, "")
