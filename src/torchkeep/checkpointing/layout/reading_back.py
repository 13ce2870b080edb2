"""Whether the files of a checkpoint are what was written: every byte comes from the disk.

A manifest has a digest of each tensor, and of each file one of the rest: of a safetensors file its
header, of another one everything. So a file is read once, and what is damaged in it has a name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchkeep.checkpointing.ranks import ALONE, Ranks
from torchkeep.contents import TensorEntry
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    FileProblem,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.files import InputFile, changed, digest_of_pieces, digests_of_runs, read_directly
from torchkeep.formats import describe
from torchkeep.formats.own.manifest import MANIFEST, read_manifest, size_problem


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of a checkpoint without reading it, since it was just written.

    To read thousands of rows of JSON takes longer than to read a GB of tensors, and the training
    would wait for it.
    """

    path: Path
    """The checkpoint."""
    manifest: Mapping[str, Any]
    """What its manifest holds."""
    digest: str = ""
    """The digest of its manifest's text, if that is a file."""
    runs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The tensors of its files in their order, with their bytes; a file may be missing."""
    of_others: frozenset[str] = frozenset()
    """Files that other ranks have written, and look at."""


def damage_of_folder(
    folder: str | os.PathLike[str], written: Written | None = None, ranks: Ranks = ALONE
) -> str:
    """Return what is wrong with a checkpoint, or an empty string.

    Args:
        folder: the checkpoint.
        written: what is known of it.
        ranks: who looks at it together.
    """
    try:
        manifest = read_manifest(folder) if written is None else _compared(written)
    except FileProblem as error:
        return _told(error)
    for number, (name, facts) in enumerate(manifest["files"].items()):
        if number % ranks.size != ranks.rank and written is None:
            continue
        if written is not None and name in written.of_others:
            continue
        digests = manifest["tensors"].get(name)
        runs = None if written is None else written.runs.get(name)
        if problem := damage_in(Path(folder) / name, facts, digests, runs):
            return problem
    return ""


def _compared(written: Written) -> Mapping[str, Any]:
    """Return the manifest that was written after comparing it with the file."""
    if not written.digest:  # another rank wrote it
        return written.manifest
    path = written.path / MANIFEST
    with InputFile(path) as file:
        if digest_of_pieces(read_directly(file)) != written.digest:
            raise DamagedFile("it differs from what was written", path=path)
    return written.manifest


def damage_in(
    path: Path,
    facts: Mapping[str, Any],
    digests: Mapping[str, str] | None,
    runs: Mapping[str, int] | None = None,
) -> str:
    """Return what is wrong with a file of a checkpoint, or an empty string.

    Args:
        path: the file.
        facts: what the manifest says of it.
        digests: those of its tensors, by their names in it; None if it has none.
        runs: the bytes of its tensors, in their order, if they are known.
    """
    try:
        with InputFile(path) as file:
            if problem := size_problem(path.name, file.nbytes, facts):
                return problem
            if runs is None:
                runs = {} if digests is None else _tensors_in(path)
            if (rest := file.nbytes - sum(runs.values())) < 0:
                raise changed(path)
            found = digests_of_runs(read_directly(file), [rest, *runs.values()])
            if next(found) != facts["digest"]:
                return f"{path.name}{': its header' * bool(runs)} differs from what was written"
            for name, digest in zip(runs, found, strict=True):
                if digest != (digests or {}).get(name):
                    return f"{path.name}: tensor {name} differs from what was written"
    except FileProblem as error:
        return _told(error)
    return ""


def _tensors_in(path: Path) -> dict[str, int]:
    """Return the sizes of a file's tensors in bytes, in their order; they are all it ends with."""
    entries = tensors_of(path)
    places = sorted(
        (entry.storage.offset or 0, entry.storage.nbytes, name) for name, entry in entries.items()
    )
    return {name: nbytes for _, nbytes, name in places}


def tensors_of(path: Path) -> Mapping[str, TensorEntry]:
    """Return the tensors of a safetensors file.

    Raises:
        DamagedFile: it is none, and was one when it was written.
    """
    try:
        contents = describe(path)
    except (NotAModelFile, UnsupportedContent) as error:
        raise DamagedFile(error.problem, path=path) from None
    if contents.container != "safetensors":
        raise DamagedFile("it is not the safetensors file that was written", path=path)
    entries: Mapping[str, TensorEntry] = contents.root
    return entries


def entry_of(path: Path, entries: Mapping[str, TensorEntry], key: str) -> TensorEntry:
    """Return a tensor of a file, of which these are all.

    Raises:
        DamagedFile: it is missing.
    """
    if key not in entries:
        raise DamagedFile(f"tensor {key} is missing", path=path)
    return entries[key]


def _told(error: FileProblem) -> str:
    name = Path(error.path or "").name
    return f"{name} is missing" if isinstance(error, FileMissing) else f"{name}: {error.problem}"
