"""A file that several processes write, each another part of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from torchkeep.files.atomic import unwritable
from torchkeep.files.direct import DirectFile
from torchkeep.files.output import OutputFile


def make_room(path: Path, nbytes: int) -> None:
    """Make a file of a given size for others to write into.

    Raises:
        SaveRefused: there is no room for it, or something has its name.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        try:
            OutputFile(path, fd, durable=False).reserve(nbytes)
            os.truncate(fd, nbytes)  # a file system that can't reserve has left it empty
        finally:
            os.close(fd)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def part_of_file(path: Path, *, durable: bool, background: bool = False) -> Iterator[OutputFile]:
    """Yield a file that is there, to write some bytes of it at their places.

    What goes past the system's cache goes by blocks of the disk: parts that different processes
    write at the same time should begin and end with one (`BLOCK_NBYTES`).

    Args:
        path: the file.
        durable: have what was written on the disk when the block ends.
        background: take as little of the processors as can be, for somebody else computes.

    Raises:
        SaveRefused: the system refuses.
    """
    try:
        fd = os.open(path, os.O_RDWR | _BINARY)
        try:
            file: OutputFile = (
                DirectFile(path, fd, durable=durable, is_part=True)
                if background
                else OutputFile(path, fd, durable=durable)
            )
            yield file
            file.flush()
        finally:
            os.close(fd)
    except OSError as error:
        raise unwritable(path, error) from error


_BINARY = getattr(os, "O_BINARY", 0)
