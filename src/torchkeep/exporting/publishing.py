"""A file that is written aside, with what belongs to it, and takes its name once it is proven."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torchkeep.errors import ExportRefused, SaveRefused
from torchkeep.exporting.report import Exported
from torchkeep.files import TEMPORARY_MARK, remove_files, staged_file, write_file
from torchkeep.wording import printable


def report_path(path: Path) -> Path:
    """Return where the proof of a file is: `<name>.json` beside it."""
    return path.with_name(f"{path.name}.json")


@contextlib.contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """Yield a folder beside a file's place, on the same disk; it is gone when the block ends.

    Raises:
        SaveRefused: it can't be made, or the disk is full.
    """
    folder = final.with_name(f".{final.name[:100]}{TEMPORARY_MARK}{os.urandom(6).hex()}")
    try:
        folder.mkdir()
    except OSError as error:
        raise SaveRefused(
            f"{printable(str(final))}: its folder can't be written to ({error.strerror})",
            advice="Create the folder first, or choose another.",
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def written_to(final: Path) -> Iterator[None]:
    """Explain what goes wrong when the disk has no room, which exporters say in many ways.

    Raises:
        SaveRefused: it has none, or the system refuses.
    """
    try:
        yield
    except (OSError, RuntimeError, ExportRefused) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or any(x in str(error) for x in _NO_ROOM):
            raise SaveRefused(
                f"{printable(str(final))}: the disk is full; nothing was changed",
                advice="Free some space, or export elsewhere.",
            ) from error
        if isinstance(error, OSError):
            raise SaveRefused(
                f"{printable(str(final))}: could not be written ({error.strerror or error})"
            ) from error
        raise


_NO_ROOM = ("No space left", "PytorchStreamWriter failed writing file", "iostream error")
"""What C++ makes of a failed write."""


def publish(folder: Path, final: Path, report: Exported, *, overwrite: bool) -> None:
    """Give the files of a folder their names, the one that people open last.

    Where there are several, and older ones of the same names, the older main file goes first: a
    crash on the way leaves none, and never a graph with another one's weights.

    Raises:
        SaveRefused: the system refuses, or the name was taken meanwhile.
    """
    others = [each for each in sorted(folder.iterdir()) if each.name != final.name]
    told = json.dumps(replace(report, path=final).to_json(), indent=1, allow_nan=False) + "\n"
    if others and overwrite:
        remove_files([final])
    for each in others:
        _move(each, final.with_name(each.name), overwrite=overwrite)
    write_file(report_path(final), told.encode(), overwrite=True)
    _move(folder / final.name, final, overwrite=overwrite)


def _move(source: Path, target: Path, *, overwrite: bool) -> None:
    with staged_file(target, overwrite=overwrite) as place:
        fd = os.open(source, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        source.replace(place)
