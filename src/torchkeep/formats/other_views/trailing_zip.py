"""A zip archive at the end of a file that starts as something else.

Every program for zip archives, and Python's zipfile, goes by the directory at the end, whatever
stands in front of the archive: programs that unpack themselves are made so. The offsets in such a
directory count from the start of the file or from that of the archive. zipfile takes both.
`torch.jit.load` takes the former only. `torch.load` takes none: it goes by the file's first four
bytes, and reads the file as a tar, or as a pickle.

Source: torch/serialization.py (`_is_zipfile`), caffe2/serialize/inline_container.cc, Lib/zipfile
(`_EndRecData`); each was tried out with PyTorch 2.
"""

from __future__ import annotations

from dataclasses import replace

from torchkeep.contents import Contents, Finding
from torchkeep.errors import FileProblem, NotAModelFile
from torchkeep.files import FilePart, Readable
from torchkeep.formats.archives.tar_directory import BLOCK_NBYTES, is_tar_header
from torchkeep.formats.zips import kinds as zip_kinds
from torchkeep.formats.zips.structs import (
    CENTRAL_MAGIC,
    END,
    END64,
    END64_LOCATOR,
    END64_LOCATOR_MAGIC,
    END64_MAGIC,
    END_MAGIC,
    FULL16,
    FULL32,
    LOCAL_MAGIC,
)
from torchkeep.pickles.limits import Limits

_LONGEST_COMMENT = 0xFFFF
_SEVEN_ZIP_MAGIC = b"7z\xbc\xaf\x27\x1c"


def with_trailing_zip(contents: Contents, file: Readable, head: bytes, limits: Limits) -> Contents:
    """Return a description with that of the zip archive that the file ends in, if it does.

    Args:
        contents: what the file is by its first bytes.
        file: the file.
        head: its first bytes.
        limits: bounds of the work.

    Raises:
        FileUnreadable: the file can't be read.
    """
    # What lies in a 7z archive unpacked is described with it, and behind it is its directory.
    if head.startswith((LOCAL_MAGIC, _SEVEN_ZIP_MAGIC)):
        return contents
    archive = _find_zip(file, is_tar=is_tar_header(head))
    if archive is None:
        return contents
    try:
        inner = zip_kinds.describe(archive, limits)
    except FileProblem as problem:
        inner = Contents(archive.path, archive.nbytes, "archive", None, problem=problem)
    return _joined(contents, inner)


def _joined(contents: Contents, inner: Contents) -> Contents:
    """Return what a file and the archive at its end are together."""
    if isinstance(contents.problem, NotAModelFile):
        # A program that unpacks itself, say: the archive is all that there is.
        text = "other data stands before the zip archive: some programs read it, and some do not"
        findings = (*contents.findings, *inner.findings, _polyglot(text))
        return replace(inner, path=contents.path, nbytes=contents.nbytes, findings=findings)
    text = "the file ends in a zip archive, and programs for those read it as one"
    found = [item.within("zip") for item in inner.findings]
    return replace(
        contents,
        globals=tuple(dict.fromkeys((*contents.globals, *inner.globals))),
        findings=(*contents.findings, _polyglot(text), *found),
        members=(*contents.members, inner),
    )


def _polyglot(text: str) -> Finding:
    return Finding("polyglot", "ambiguous", "", text)


def _find_zip(file: Readable, *, is_tar: bool) -> FilePart | None:
    """Return the zip archive that a file ends in, or None if there is none.

    The last file of a tar may well be a zip archive: that is no second view of the tar.
    """
    nbytes = min(file.nbytes, END.size + _LONGEST_COMMENT)
    tail = file.read_at(file.nbytes - nbytes, nbytes)
    found = tail.rfind(END_MAGIC, 0, max(0, len(tail) - END.size + len(END_MAGIC)))
    for _ in range(_MOST_ENDS):
        if found < 0:
            break
        end = tail[found : found + END.size]
        start = _start_of_zip(file, file.nbytes - nbytes + found, end)
        if start is not None and not (is_tar and _is_in_tar(file, start)):
            return FilePart(file, start, file.nbytes - start)
        found = tail.rfind(END_MAGIC, 0, found)
    return None


_MOST_ENDS = 100
"""Marks of an end that are looked at: bytes that only look like one are rare."""


def _start_of_zip(file: Readable, end_offset: int, end: bytes) -> int | None:
    """Return from where on the archive's directory counts; None if there is no directory."""
    nbytes: int
    offset: int
    _, _, _, _, count, nbytes, offset, _ = END.unpack(end)
    locator_offset = end_offset - END64_LOCATOR.size
    has_room = locator_offset >= END64.size
    has_locator = has_room and file.read_at(locator_offset, 4) == END64_LOCATOR_MAGIC
    if has_room and (has_locator or count == FULL16 or FULL32 in (nbytes, offset)):
        end_offset = locator_offset - END64.size
        fields = END64.unpack(file.read_at(end_offset, END64.size))
        if fields[0] != END64_MAGIC:
            return None
        nbytes, offset = fields[8:10]
    directory = end_offset - nbytes
    start = directory - offset
    if start < 0 or nbytes < 4 or file.read_at(directory, 4) != CENTRAL_MAGIC:
        return None
    return start


def _is_in_tar(file: Readable, start: int) -> bool:
    """Whether a zip archive that starts here is a file of the tar around it."""
    if start < BLOCK_NBYTES or start % BLOCK_NBYTES:
        return False
    return is_tar_header(file.read_at(start - BLOCK_NBYTES, BLOCK_NBYTES))
