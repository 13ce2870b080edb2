"""A distributed checkpoint (DCP): a folder that all ranks of a run wrote into.

Layout:

    .metadata            written last, so that its being there says that the save is whole;
                         see `dcp_metadata`
    __<rank>_<n>.distcp  the pieces that a rank wrote; see `dcp_shards`
    __<rank>.metadata    in place of .metadata where ranks save without each other
    shard-<n>-model-<m>-of-<k>.safetensors   see `dcp_safetensors`

The tree is the nested state dict that was saved. A tensor that lies in one piece is a plain view of
its shard; any other has `chunks`. What was no tensor was pickled, one archive for each, and is told
of as the value that it is. A chunk whose length is that of its elements is those elements, raw.

Limits: shards that were packed (`stream.zstd`) are listed and not read. With more than
`MOST_PIECES` pieces of tensors these are not looked into, and so all have `chunks`.

Source: torch/distributed/checkpoint/filesystem.py, _nested_dict.py and _traverse.py.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torchkeep.contents import Contents, Finding
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.files import InputFile
from torchkeep.formats.folders.dcp_joining import put_together
from torchkeep.formats.folders.dcp_metadata import read_metadata
from torchkeep.formats.folders.dcp_safetensors import HF_SHARD, describe_hf_shards
from torchkeep.formats.folders.dcp_shards import CONTAINER
from torchkeep.formats.folders.folder import Folder, FolderKind, listed, look_into, unreadable
from torchkeep.formats.joining import join_members

METADATA = ".metadata"
_SHARD = ".distcp"
_OF_RANK = re.compile(r"__\d{1,9}\.metadata")
_METADATA_START = re.compile(
    rb"\x80.{0,12}torch\.distributed\.(_shard\.)?checkpoint\.metadata(\n|\x94?\x8c\x08)Metadata",
    re.DOTALL,
)


def is_metadata(head: bytes) -> bool:
    """Whether a file that starts so is the `.metadata` of a distributed checkpoint."""
    return _METADATA_START.match(head) is not None


def _matches(folder: Folder) -> bool:
    if METADATA in folder.files and is_metadata(folder.head(METADATA)):
        return True
    return any(
        name.endswith(_SHARD) or _OF_RANK.fullmatch(name) or HF_SHARD.fullmatch(name)
        for name in folder.files
    )


def describe(folder: Folder) -> Contents:
    """Return what a distributed checkpoint holds."""
    if METADATA in folder.files:
        contents = _describe_saved(folder, METADATA)
    elif of_ranks := [name for name in folder.files if _OF_RANK.fullmatch(name)]:
        contents = _describe_ranks(folder, of_ranks)
    elif of_hf := [name for name in folder.files if HF_SHARD.fullmatch(name)]:
        contents = describe_hf_shards(folder, of_hf)
    else:
        contents = _describe_unfinished(folder)
    return _with_companions(folder, contents)


def describe_metadata_file(folder: Folder, name: str) -> Contents:
    """Return what a `.metadata`, of whatever name, and the shards beside it hold."""
    path = folder.path / name
    try:
        return replace(_describe_saved(folder, name), path=path)
    except FileProblem as problem:
        seen = problem.seen
        return Contents(
            path=path,
            nbytes=folder.files.get(name, 0),
            container=CONTAINER,
            root=None,
            globals=seen.globals if seen else (),
            findings=seen.findings if seen else (),
            problem=problem.in_file(path),
        )


def _describe_saved(folder: Folder, name: str) -> Contents:
    with InputFile(folder.path / name) as file:
        saved = read_metadata(file, folder.limits)
    joined = put_together(folder, saved, is_alone=name != METADATA)
    shards = sorted({place.file for place in saved.places.values()})
    findings = [*saved.findings, *joined.findings]
    # A rank that had nothing to write leaves an empty one.
    extra = [shard for shard in _shards(folder) if shard not in shards and folder.files[shard]]
    if extra and name == METADATA:
        text = f"{len(extra)} shards do not belong to it: {listed(extra)}"
        findings.append(Finding("extra-file", "note", "", text))
    return Contents(
        path=folder.path,
        nbytes=folder.nbytes if name == METADATA else joined.nbytes + folder.files.get(name, 0),
        container=CONTAINER,
        root=joined.root,
        metadata=saved.facts,
        # The protocol is left out: torch.load does not read such a folder.
        globals=tuple(dict.fromkeys((*saved.globals, *joined.globals))),
        findings=tuple(findings),
        kind=f"distributed checkpoint in {len(shards)} shard{'' if len(shards) == 1 else 's'}",
    )


def _shards(folder: Folder) -> list[str]:
    return [name for name in folder.files if name.endswith(_SHARD)]


# --- Other layouts -----------------------------------------------------------------------------


def _describe_ranks(folder: Folder, names: list[str]) -> Contents:
    """Return what ranks hold that saved without each other."""
    members = {name: describe_metadata_file(folder, name) for name in names}
    joined = join_members(
        folder.path,
        folder.nbytes,
        CONTAINER,
        members,
        kind=f"distributed checkpoint of {len(names)} ranks that saved each by itself",
        findings=tuple(unreadable(members)),
    )
    return replace(joined, pickle_protocol=None)


def _describe_unfinished(folder: Folder) -> Contents:
    """Return what is left of a checkpoint without its metadata."""
    shards = _shards(folder)
    opened = shards[: max(folder.budget.left, 0)]
    members = {name: folder.examine(name) for name in opened}
    text = (
        "there is no .metadata, which is written last: the save was not finished, or the file was "
        "not copied (its name starts with a dot)"
    )
    findings = [Finding("unfinished", "damaged", METADATA, text), *unreadable(members)]
    if len(opened) < len(shards):
        text = f"{len(shards) - len(opened)} shards were not looked into"
        findings.append(Finding("not-looked-into", "ambiguous", "", text))
    joined = join_members(
        folder.path,
        folder.nbytes,
        CONTAINER,
        members,
        kind=f"{len(shards)} shard{'' if len(shards) == 1 else 's'} of a distributed checkpoint "
        "without its metadata",
        findings=tuple(findings),
        problem=None
        if any(member.problem is None for member in members.values())
        else DamagedFile(text),
    )
    return replace(joined, pickle_protocol=None)


def _with_companions(folder: Folder, contents: Contents) -> Contents:
    """Add the other model files of the folder, such as Megatron's `common.pt`."""
    own = (METADATA, *_shards(folder))
    names = [
        name
        for name in folder.files
        if name not in own and not _OF_RANK.fullmatch(name) and not HF_SHARD.fullmatch(name)
    ]
    members, findings = look_into(folder, names)
    if not members and not findings:
        return contents
    findings += unreadable(members)
    joined = join_members(folder.path, 0, CONTAINER, members, findings=tuple(findings))
    root = contents.root if isinstance(contents.root, dict) else {}
    return replace(
        contents,
        root={**{name: value for name, value in joined.root.items() if name not in root}, **root},
        globals=tuple(dict.fromkeys((*contents.globals, *joined.globals))),
        findings=(*contents.findings, *joined.findings),
        members=(*contents.members, *joined.members),
    )


KIND = FolderKind(CONTAINER, _matches, describe)
