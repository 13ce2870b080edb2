"""A pointer of Git LFS is named with what it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.samples_foreign import LFS
from torchkeep.contents import Contents
from torchkeep.errors import NotAModelFile
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.pickles.limits import DEFAULT_LIMITS

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.pth")), DEFAULT_LIMITS)


def test_a_pointer_says_what_it_stands_for() -> None:
    contents = look(LFS)
    assert contents.container == "git-lfs-pointer"
    assert contents.kind == f"Git LFS pointer to a file of 98.0 MB, sha256 {OID}"
    assert contents.metadata["size"] == "98000000"
    assert isinstance(contents.problem, NotAModelFile)
    assert str(contents.problem) == (
        "model.pth: this is a Git LFS pointer, not the file it stands for. "
        "Fetch the model itself with `git lfs pull`."
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer to a file"),
        (
            b"version https://hawser.github.com/spec/v1\nsize 1\n",
            "Git LFS pointer to a file of 1 B",
        ),
        (LFS.replace(b"98000000", b"9" * 40), f"Git LFS pointer to a file, sha256 {OID}"),
        (LFS.replace(b"98000000", b"x"), f"Git LFS pointer to a file, sha256 {OID}"),
        (LFS + b"\xff" * 5000, f"Git LFS pointer to a file of 98.0 MB, sha256 {OID}"),
    ],
)
def test_odd_pointers_are_pointers_all_the_same(data: bytes, kind: str) -> None:
    assert look(data).kind == kind
