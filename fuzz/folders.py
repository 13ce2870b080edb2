"""Folders as a fuzz target: one file of a folder of some kind has other bytes than it should.

An input is a folder's number, a file's number, and that file's bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

TEMPLATES = Path(__file__).parent / "corpus" / "templates"
"""A folder of every kind, written by seeds.py."""


def inputs(templates: Path, max_nbytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield a name and an input for each small file of the folders, as it is."""
    for number, folder in enumerate(_folders(templates)):
        for index, file in enumerate(_files(folder)):
            data = file.read_bytes()
            if index < 256 and len(data) <= max_nbytes:
                yield f"{folder.name}-{file.name}", bytes([number, index]) + data


class Folders:
    """The folders in a scratch place, and `replaced`, which gives one of them another file."""

    def __init__(self, templates: Path = TEMPLATES) -> None:
        self.templates = templates

    @cached_property
    def _scratch(self) -> list[tuple[Path, list[Path]]]:
        memory = Path("/dev/shm")  # a disk would be the slowest part of a run
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        place = Path(self._folder.name) / "folders"
        shutil.copytree(self.templates, place)
        return [(folder, _files(folder)) for folder in _folders(place)]

    def replaced(self, data: bytes) -> tuple[Path, Path, bytes] | None:
        """Return a folder, its file that now has the input's bytes, and what it had before."""
        if len(data) < 2:
            return None
        folder, files = self._scratch[data[0] % len(self._scratch)]
        file = files[data[1] % len(files)]
        before = file.read_bytes()
        file.write_bytes(data[2:])
        return folder, file, before


def _folders(place: Path) -> list[Path]:
    return sorted(item for item in place.iterdir() if item.is_dir())


def _files(folder: Path) -> list[Path]:
    return sorted(item for item in folder.rglob("*") if item.is_file())
