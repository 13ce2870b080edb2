"""A file that is written aside, with what belongs to it, and takes its name once it is proven."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from os.path import samestat
from pathlib import Path

from torchkeep.errors import ExportRefused, SaveRefused
from torchkeep.exporting.report import Exported
from torchkeep.files import TEMPORARY_MARK, staged_file, write_file
from torchkeep.wording import printable

LONGEST_WAIT_S = 30.0
"""For another export that is naming its files in the same folder."""


def report_path(path: Path) -> Path:
    """Return where the proof of a file is: `<name>.json` beside it."""
    return path.with_name(f"{path.name}.json")


@contextlib.contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """Yield a folder beside a file's place, on the same disk; it is gone when the block ends.

    Raises:
        SaveRefused: it can't be made, or the disk is full.
    """
    # A name may have 255 bytes: a long one is shortened.
    start = final.name.encode("utf-8", "ignore")[:100].decode("utf-8", "ignore")
    folder = final.with_name(f".{start}{TEMPORARY_MARK}{os.urandom(6).hex()}")
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
def explaining_disk_errors(final: Path) -> Iterator[None]:
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


def refuse_taken(places: Iterable[Path], *, overwrite: bool) -> None:
    """Say before the work, and not after it, that there is no place for what comes out of it.

    Args:
        places: of the file, of what belongs to it, and of its report.
        overwrite: replace what is there.

    Raises:
        SaveRefused: there is none.
    """
    for place in places:
        where = printable(str(place))
        if not place.exists():
            continue
        if not place.is_file():
            raise SaveRefused(f"{where}: this is no file", advice="Choose another name.")
        if not overwrite:
            raise SaveRefused(
                f"{where}: there is something already",
                advice="Choose another name, or pass overwrite=True to replace it.",
            )


def refuse_source(places: Iterable[Path], source: Path | None) -> None:
    """Make sure that what is exported is not replaced, whatever its name and the places' are.

    Raises:
        SaveRefused: it would be.
    """
    for place in places:
        if source is not None and place.exists() and place.samefile(source):
            raise SaveRefused(
                f"{printable(str(place))}: this is what is to be exported",
                advice="Choose another name.",
            )


def publish(
    folder: Path, final: Path, report: Exported, *, overwrite: bool, parts: Iterable[Path] = ()
) -> None:
    """Give the files of a folder their names, the one that people open last.

    Where there are several, or older ones beside it, the older main file is set aside first: a
    crash on the way leaves none, and never a graph with another one's weights. Whatever else goes
    wrong, all is as it was.

    Args:
        folder: the folder.
        final: the file.
        report: what is told of it; it is written beside it.
        overwrite: replace what is there.
        parts: what may be beside an older file, and belongs to it: it goes with that.

    Raises:
        SaveRefused: the system refuses, or the name was taken meanwhile.
    """
    others = [each for each in sorted(folder.iterdir()) if each.name != final.name]
    told = json.dumps(replace(report, path=final).to_json(), indent=1, allow_nan=False) + "\n"
    proof = folder / report_path(final).name
    write_file(proof, told.encode())  # here, since a disk that is full is met by it
    moves = [(each, final.with_name(each.name)) for each in (*others, proof, folder / final.name)]
    with _alone_in(final.parent):
        older = [place for place in parts if overwrite and place.exists()]
        if others or older:
            older.insert(0, final)
        aside = [*older, report_path(final)] if overwrite else []
        with _set_aside(aside, moves):
            for source, place in moves:
                _move(source, place, overwrite=overwrite)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep another export from naming its files here meanwhile, so that no two are mixed.

    Where the system has no such locks, as on Windows and on some network disks, nothing is kept.
    Nor is it where somebody holds one for longer than names take: whoever has started this by
    `flock FOLDER` holds it until this ends.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fd = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, fd)
            last = time.monotonic() + LONGEST_WAIT_S
            while time.monotonic() < last:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.01)
        yield


@contextlib.contextmanager
def _set_aside(places: Iterable[Path], moves: Sequence[tuple[Path, Path]]) -> Iterator[None]:
    """Take files away from their places, and have all as it was if the block fails.

    Args:
        places: the files, in the order in which they go.
        moves: where new files are, and where the block moves them; the main one is the last. Once
            that is there, all stays.
    """
    new = [(place, source.stat()) for source, place in moves]
    folder, final = moves[-1][0].parent, moves[-1][1]
    aside: list[tuple[Path, Path]] = []
    try:
        for at, place in enumerate(places):
            with contextlib.suppress(FileNotFoundError):
                target = folder / f"older-{at}"
                place.replace(target)
                aside.append((place, target))
        yield
    except BaseException:
        there = [place for place, its in new if place.exists() and samestat(place.stat(), its)]
        if final not in there:
            with contextlib.suppress(OSError):
                for place in there:
                    place.unlink()
            for place, target in reversed(aside):
                with contextlib.suppress(OSError):
                    target.replace(place)
        raise


def _move(source: Path, target: Path, *, overwrite: bool) -> None:
    with staged_file(target, overwrite=overwrite) as place:
        fd = os.open(source, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        source.replace(place)
