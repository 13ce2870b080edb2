"""Which kind of zip archive a file is: everything that is a zip on the outside.

`ZIP_KINDS` is tried in order. An archive of none of these kinds is looked into as a folder would
be: see `archive`.
"""

from __future__ import annotations

from dataclasses import replace

from torchkeep.contents import Contents, Finding
from torchkeep.errors import DamagedFile
from torchkeep.files import Readable
from torchkeep.formats.folders.dcp_shards import archives_end_to_end, describe_shard
from torchkeep.formats.format import Format
from torchkeep.formats.zips.directory import Directory
from torchkeep.formats.zips.rooted import Archive, ArchiveKind, open_archive
from torchkeep.formats.zips.structs import LOCAL_MAGIC
from torchkeep.pickles.limits import Limits

ZIP_KINDS: tuple[ArchiveKind, ...] = (
    ArchiveKind("torch-package", (".data/extern_modules",), "programs.torch_package:describe"),
    ArchiveKind("torchscript-lite", ("bytecode.pkl",), "programs.torchscript:describe"),
    ArchiveKind("torchscript", ("constants.pkl",), "programs.torchscript:describe"),
    ArchiveKind(
        "torch-export",
        ("archive_format", "serialized_exported_program.json"),
        "programs.torch_export:describe",
    ),
    ArchiveKind("torch-cpp", ("tensors/0", "attributes.pkl"), "programs.torch_cpp:describe"),
    ArchiveKind("torch-zip", ("data.pkl",), "torch.zip:describe"),
)
"""Every kind that is known by a record of its own; the plain `torch.save` archive comes last."""

_TOGETHER = frozenset({"torchscript-lite", "torchscript", "torch-zip"})
"""Kinds of which each has the records of the next one, too: no reader takes them for another."""


def sniff(head: bytes, nbytes: int) -> bool:
    """Whether the file starts as a zip archive does."""
    del nbytes
    return head.startswith(LOCAL_MAGIC)


def describe(file: Readable, limits: Limits) -> Contents:
    """Return what the archive holds, as its kind tells it."""
    if archives := archives_end_to_end(file):
        return describe_shard(file, archives, limits)
    try:
        directory, folders = open_archive(file, limits)
    except DamagedFile as problem:
        from torchkeep.formats.zips.salvage import salvage

        return salvage(file, limits, problem)
    for kind in ZIP_KINDS:
        root = _root(directory, folders, kind)
        if root is not None:
            contents = kind.describe(Archive(file, directory, root, limits))
            others = _other_kinds(directory, folders, kind)
            return replace(contents, findings=(*contents.findings, *others))
    # What few files need is imported for them alone.
    from torchkeep.formats.numpy import describe_archive, is_archive_of_arrays

    if is_archive_of_arrays(directory):
        return describe_archive(Archive(file, directory, "", limits))
    from torchkeep.formats.archives.archive import describe_zip

    return describe_zip(Archive(file, directory, "", limits))


def _other_kinds(
    directory: Directory, folders: tuple[str, ...], taken: ArchiveKind
) -> list[Finding]:
    """Return a finding for each kind that another program may take the archive for."""
    return [
        Finding(
            "two-kinds", "ambiguous", marker, f"the archive is {taken.name}, and {kind.name} too"
        )
        for kind in ZIP_KINDS
        if kind is not taken and not {kind.name, taken.name} <= _TOGETHER
        for marker in kind.markers
        if any(folder + marker in directory.records for folder in folders)
    ]


def _root(directory: Directory, folders: tuple[str, ...], kind: ArchiveKind) -> str | None:
    """Return the folder that holds one of the kind's markers, or None if there is no such folder.

    Raises:
        DamagedFile: there are several.
    """
    for marker in kind.markers:
        found = [folder for folder in folders if folder + marker in directory.records]
        if len(found) > 1:
            raise DamagedFile(f"the archive has {len(found)} records {marker}, and one is expected")
        if found:
            return found[0]
    return None


FORMAT = Format("archive", sniff, describe)
