"""Pointers of Git LFS: a few lines of text that stand for a file kept elsewhere.

Layout: lines of a key, a space and a value; the first is `version` and a URL, the others are in
the order of their keys:

    version https://git-lfs.github.com/spec/v1
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
    size 12345

A pointer has less than 1024 bytes.

Source: git-lfs/git-lfs, docs/spec.md.
"""

from __future__ import annotations

from torchkeep.contents import Contents
from torchkeep.errors import NotAModelFile
from torchkeep.files import Readable
from torchkeep.formats.format import Format
from torchkeep.pickles.limits import Limits
from torchkeep.wording import shortened, size

_STARTS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_LONGEST = 1024


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a pointer does."""
    del nbytes
    return head.startswith(_STARTS)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the pointer says about the file that it stands for."""
    del limits
    text = file.read_at(0, min(file.nbytes, _LONGEST)).decode("utf-8", "replace")
    facts = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    nbytes, oid = facts.get("size", ""), facts.get("oid", "")
    kind = "Git LFS pointer to a file"
    if nbytes.isdecimal() and len(nbytes) < 19:
        kind += f" of {size(int(nbytes))}"
    if oid:
        kind += f", {shortened(oid.replace(':', ' '), 80)}"
    advice = "Fetch the model itself with `git lfs pull`."
    return Contents(
        path=file.path,
        nbytes=file.nbytes,
        container=FORMAT.name,
        root=None,
        metadata=facts,
        kind=kind,
        problem=NotAModelFile(
            "this is a Git LFS pointer, not the file it stands for", advice=advice
        ),
    )


FORMAT = Format("git-lfs-pointer", sniff, describe)
