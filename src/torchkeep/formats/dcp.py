"""A distributed checkpoint (DCP): a folder that all ranks of a run wrote into.

Layout:

    .metadata            written last, so that its being there says that the save is whole;
                         see `dcp_metadata`
    __<rank>_<n>.distcp  the pieces that a rank wrote; see `dcp_shards`
    __<rank>.metadata    in place of .metadata where ranks save without each other
    shard-<n>-model-<m>-of-<k>.safetensors   shards of `HuggingFaceStorageWriter`: there is no
                         .metadata, and each file's header tells the offsets of its pieces

The tree is the nested state dict that was saved. A tensor that lies in one piece is a plain view of
its shard; any other has `chunks`. What was no tensor was pickled, one archive for each, and is told
of as the value that it is. A chunk whose length is that of its elements is those elements, raw.

Limits: shards that were packed (`stream.zstd`) are listed and not read. With more than
`MOST_PIECES` pieces of tensors these are not looked into, and so all have `chunks`.

Source: torch/distributed/checkpoint/filesystem.py, hf_storage.py, _nested_dict.py, _traverse.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from torchkeep.contents import (
    Chunk,
    Contents,
    Finding,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
)
from torchkeep.errors import DamagedFile, FileProblem, NotAModelFile
from torchkeep.files import InputFile
from torchkeep.formats.dcp_metadata import (
    Box,
    Place,
    Saved,
    SavedTensor,
    read_metadata,
    tiling,
)
from torchkeep.formats.dcp_shards import CONTAINER, Pieces
from torchkeep.formats.folder import Folder, FolderKind, listed, shown, way_out
from torchkeep.formats.members import join_members

METADATA = ".metadata"
MOST_PIECES = 2_000
"""Pieces of tensors that are looked into; each takes a third of a millisecond."""

_SHARD = ".distcp"
_OF_RANK = re.compile(r"__\d{1,9}\.metadata")
_HF_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_HF_FACTS = "DCP_SHARDING_INFO"
_METADATA_START = re.compile(
    rb"\x80.{0,12}torch\.distributed\.(_shard\.)?checkpoint\.metadata(\n|\x94?\x8c\x08)Metadata",
    re.DOTALL,
)

_Severity = Literal["note", "needs-trust", "ambiguous", "dangerous", "damaged"]


def is_metadata(head: bytes) -> bool:
    """Whether a file that starts so is the `.metadata` of a distributed checkpoint."""
    return _METADATA_START.match(head) is not None


def _matches(folder: Folder) -> bool:
    if METADATA in folder.files and is_metadata(folder.head(METADATA)):
        return True
    return any(
        name.endswith(_SHARD) or _OF_RANK.fullmatch(name) or _HF_SHARD.fullmatch(name)
        for name in folder.files
    )


def describe(folder: Folder) -> Contents:
    """Return what a distributed checkpoint holds."""
    if METADATA in folder.files:
        contents = _describe_saved(folder, METADATA)
    elif of_ranks := [name for name in folder.files if _OF_RANK.fullmatch(name)]:
        contents = _describe_ranks(folder, of_ranks)
    elif of_hf := [name for name in folder.files if _HF_SHARD.fullmatch(name)]:
        contents = _describe_hf(folder, of_hf)
    else:
        contents = _describe_unfinished(folder)
    return _with_companions(folder, contents)


def describe_metadata_file(folder: Folder, name: str) -> Contents:
    """Return what a `.metadata`, of whatever name, and the shards beside it hold."""
    try:
        return _describe_saved(folder, name)
    except FileProblem as problem:
        path = folder.path / name
        problem.in_file(path)
        seen = problem.seen
        return Contents(
            path=path,
            nbytes=folder.files.get(name, 0),
            container=CONTAINER,
            root=None,
            globals=seen.globals if seen else (),
            findings=seen.findings if seen else (),
            problem=problem,
        )


def _describe_saved(folder: Folder, name: str) -> Contents:
    with InputFile(folder.path / name) as file:
        saved = read_metadata(file, folder.limits)
    joining = _Joining(folder, saved)
    root = joining.root()
    shards = sorted({place.file for place in saved.places.values()})
    extra = [shard for shard in _shards(folder) if shard not in shards]
    if extra and name == METADATA:
        text = f"{len(extra)} shards do not belong to it: {listed(extra)}"
        joining.note("extra-file", "note", text)
    return Contents(
        path=folder.path if name == METADATA else folder.path / name,
        nbytes=folder.nbytes if name == METADATA else joining.nbytes + folder.files.get(name, 0),
        container=CONTAINER,
        root=root,
        metadata=saved.facts,
        # The protocol is left out: torch.load does not read such a folder.
        globals=tuple(dict.fromkeys((*saved.globals, *joining.pieces.globals))),
        findings=(*saved.findings, *joining.findings, *joining.pieces.findings_and_problems()),
        kind=f"distributed checkpoint in {len(shards)} shard{'' if len(shards) == 1 else 's'}",
    )


def _shards(folder: Folder) -> list[str]:
    return [name for name in folder.files if name.endswith(_SHARD)]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a tensor, or an object, and where it lies."""

    key: str
    box: Box | None
    place: Place


class _Joining:
    """Puts what a metadata tells together from the shards beside it."""

    def __init__(self, folder: Folder, saved: Saved) -> None:
        self.folder = folder
        self.saved = saved
        self.findings: list[Finding] = []
        self.pieces = Pieces(folder.limits)
        self.nbytes = 0
        self.opened: dict[Place, Value] = {}
        self.usable: set[Place] = set()

    def note(self, rule: str, severity: _Severity, text: str) -> None:
        self.findings.append(Finding(rule, severity, "", text))

    def root(self) -> dict[Value, Value]:
        """Return the nested state dict."""
        self.check_tiling()
        by_file: dict[str, list[_Piece]] = {}
        for piece in self.all_pieces():
            by_file.setdefault(piece.place.file, []).append(piece)
        sizes = self.sizes_of_shards(list(by_file))
        for file in sorted(sizes):
            self.choose(by_file[file], sizes[file])
            self.open(file, by_file[file])
        return self.nested({key: self.value(key) for key in self.saved.items})

    def check_tiling(self) -> None:
        gaps: list[str] = []
        overlaps: list[str] = []
        for key, item in self.saved.items.items():
            problem = tiling(item) if item is not None else ""
            if problem:
                (gaps if "in none" in problem else overlaps).append(f"{key}: {problem}")
        if gaps:
            text = f"{len(gaps)} tensors have parts that no rank wrote: {listed(gaps)}"
            self.note("missing-piece", "damaged", text)
        if overlaps:
            text = f"{len(overlaps)} tensors have pieces that contradict: {listed(overlaps)}"
            self.note("overlapping-pieces", "ambiguous", text)

    def all_pieces(self) -> Iterator[_Piece]:
        nowhere = []
        for key, item in self.saved.items.items():
            for box in (None,) if item is None else item.boxes:
                place = self.saved.place_of(key, box)
                if place is not None:
                    yield _Piece(key, box, place)
                else:
                    nowhere.append(key)
        if nowhere:
            text = f"{len(nowhere)} pieces have no place in any shard: {listed(nowhere)}"
            self.note("missing-piece", "damaged", text)

    def sizes_of_shards(self, files: list[str]) -> dict[str, int]:
        """Return the sizes of the shards that are there."""
        sizes: dict[str, int] = {}
        missing = []
        for file in sorted(files):
            outside = way_out(self.folder.path, file)
            if outside is not None:
                if len(self.findings) < _MOST_FINDINGS:
                    self.findings.append(outside)
                continue
            try:
                with InputFile(self.folder.path / file) as shard:
                    sizes[file] = shard.nbytes
            except FileProblem:
                missing.append(file)
        if missing:
            text = f"{len(missing)} of {len(files)} shards can't be opened: {listed(missing)}"
            self.note("missing-file", "damaged", text)
        self.nbytes = sum(sizes.values())
        return sizes

    def choose(self, pieces: list[_Piece], nbytes: int) -> None:
        """Sort out which pieces of a shard have a place of their own in it."""
        cut_off, shared = [], []
        end = 0
        for piece in sorted(pieces, key=lambda item: (item.place.start, item.place.nbytes)):
            place = piece.place
            if place.start + place.nbytes > nbytes:
                cut_off.append(piece.key)
            elif place.start < end:
                shared.append(piece.key)
            else:
                self.usable.add(place)
                end = place.start + place.nbytes
        file = shown(pieces[0].place.file)
        if cut_off:
            text = f"{file} is truncated: {len(cut_off)} pieces end behind it, {listed(cut_off)}"
            self.note("truncated", "damaged", text)
        if shared:
            text = f"{len(shared)} pieces in {file} share bytes with others: {listed(shared)}"
            self.note("shared-bytes", "ambiguous", text)
        covered = sum(piece.place.nbytes for piece in pieces if piece.place in self.usable)
        if covered < nbytes and not cut_off and not shared:
            text = f"{nbytes - covered} bytes of {file} belong to nothing"
            self.note("unused-bytes", "note", text)

    def open(self, file: str, pieces: list[_Piece]) -> None:
        """Look into the pieces of a shard, in the order in which they lie there."""
        looks = self.looks_into_tensors()
        path = self.folder.path / file
        try:
            with InputFile(path) as shard:
                for piece in sorted(pieces, key=lambda item: item.place.start):
                    place = piece.place
                    is_asked_for = piece.box is None or looks
                    if place in self.usable and is_asked_for and not place.packing:
                        self.opened[place] = self.pieces.open(
                            piece.key, shard, place.start, place.nbytes
                        )
        except FileProblem as problem:  # it vanished or shrank meanwhile
            self.note("unreadable-file", "damaged", f"{shown(file)}: {problem.problem}")

    def looks_into_tensors(self) -> bool:
        return len(self.saved.places) <= MOST_PIECES

    # --- Values --------------------------------------------------------------------------------

    def value(self, key: str) -> Value:
        item = self.saved.items[key]
        if item is not None:
            return self.tensor(key, item)
        place = self.saved.place_of(key, None)
        if place is None or place not in self.opened:
            return Object(NOT_READ, (key,))
        return self.opened[place]

    def tensor(self, key: str, item: SavedTensor) -> TensorEntry:
        """Return a tensor: a view of its shard if it lies there whole, else made of chunks."""
        chunks = []
        for box in item.boxes:
            place = self.saved.place_of(key, box)
            if place is None or place not in self.usable or place.packing:
                continue
            entry = self.opened.get(place)
            if place in self.opened and not self.fits(key, entry, item.dtype, box.shape):
                continue
            if isinstance(entry, TensorEntry) and box.shape == item.shape:
                return replace(entry, requires_grad=item.requires_grad)
            path = self.folder.path / place.file
            chunks.append(Chunk(box.offsets, box.shape, path, place.start, place.nbytes))
        return TensorEntry(
            dtype=item.dtype,
            shape=item.shape,
            stride=contiguous_stride(item.shape),
            storage=Storage(key, 0, None),
            requires_grad=item.requires_grad,
            chunks=tuple(chunks),
        )

    def fits(self, key: str, entry: Value, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether an archive holds the tensor that the metadata promises."""
        if entry is None:  # it can't be read, which is told of
            return False
        is_right = isinstance(entry, TensorEntry) and (entry.dtype, entry.shape) == (dtype, shape)
        if not is_right and len(self.findings) < _MOST_FINDINGS:
            text = f"a piece of {shown(key)} is said to be {dtype} {list(shape)}, and is not"
            self.note("other-piece", "ambiguous", text)
        return is_right

    def nested(self, flat: dict[str, Value]) -> dict[Value, Value]:
        """Return the nested state dict from a flat one."""
        paths = {key: self.saved.paths.get(key, (key,)) for key in flat}
        nest = _Nest(sum(map(len, paths.values())))
        clashes = [key for key, value in flat.items() if not nest.put(paths[key], value)]
        for key in clashes:
            nest.root.setdefault(key, flat[key])
        if clashes:
            text = f"{len(clashes)} keys have a path that contradicts another: {listed(clashes)}"
            self.note("path-clash", "ambiguous", text)
        self.note_what_is_not_read()
        return nest.root

    def note_what_is_not_read(self) -> None:
        packed = {step for place in self.saved.places.values() for step in place.packing}
        if packed:
            text = f"the shards are packed with {listed(sorted(packed))}, which is not read"
            self.note("packed", "ambiguous", text)
        if not self.looks_into_tensors():
            text = (
                f"the {len(self.saved.places):,} pieces were not looked into, but for the objects; "
                "scan each shard to do so"
            )
            self.note("pieces", "note", text)


NOT_READ = Global("torch.distributed.checkpoint", "<not read>")
"""The callee of the `Object` that stands for a pickled object that could not be read."""
_MOST_FINDINGS = 100


class _Nest:
    """A nest of dicts and lists, filled as PyTorch does: an int in a path is a place in a list.

    Attributes:
        root: the outermost dict.
    """

    def __init__(self, room: int) -> None:
        self.root: dict[Value, Value] = {}
        self.room = room  # places in all lists together: in an honest one each is some value's

    def put(self, path: tuple[str | int, ...], value: Value) -> bool:
        """Set a value; return False if something else stands in the way."""
        at: Value = self.root
        for part, following in pairwise(path):
            if not self.reach(at, part):
                return False
            held = at[part]
            if held is None:
                held = at[part] = [] if isinstance(following, int) else {}
            at = held
        if not self.reach(at, path[-1]) or at[path[-1]] is not None:
            return False
        at[path[-1]] = value
        return True

    def reach(self, at: Value, part: str | int) -> bool:
        """Have a place for a part of a path; return False if this is not what it needs."""
        if isinstance(part, str):
            return type(at) is dict and at.setdefault(part, None) is at[part]
        more = part + 1 - len(at) if type(at) is list else 0
        if type(at) is not list or part < 0 or more > self.room:
            return False
        self.room -= max(more, 0)
        at.extend([None] * more)
        return True


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
        findings=tuple(_unreadable(members)),
    )
    return replace(joined, pickle_protocol=None)


def _unreadable(members: Mapping[str, Contents]) -> Iterator[Finding]:
    for name, member in members.items():
        if member.problem is not None:
            yield Finding("unreadable-file", "damaged", name, member.problem.problem)


def _describe_unfinished(folder: Folder) -> Contents:
    """Return what is left of a checkpoint without its metadata."""
    shards = _shards(folder)
    opened = shards[: max(folder.budget.left, 0)]
    members = {name: folder.examine(name) for name in opened}
    text = (
        "there is no .metadata, which is written last: the save was not finished, or the file was "
        "not copied (its name starts with a dot)"
    )
    findings = [Finding("unfinished", "damaged", METADATA, text), *_unreadable(members)]
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


def _describe_hf(folder: Folder, names: list[str]) -> Contents:
    """Return what the safetensors shards of a distributed checkpoint amount to."""
    opened = names[: max(folder.budget.left, 0)]
    members = {name: folder.examine(name) for name in opened}
    findings = list(_unreadable(members))
    pieces: dict[str, list[tuple[Box, TensorEntry]]] = {}
    for name, member in members.items():
        offsets = _hf_offsets(member)
        for key, entry in (member.root or {}).items():
            start = offsets.get(key, (0,) * len(entry.shape))
            if len(start) == len(entry.shape):
                pieces.setdefault(key, []).append((Box(start, entry.shape), entry))
            else:
                text = f"the offsets of {shown(key)} do not belong to its shape"
                findings.append(Finding("metadata", "damaged", name, text))
    root = {key: _hf_tensor(key, parts, findings) for key, parts in pieces.items()}
    joined = join_members(
        folder.path,
        folder.nbytes,
        CONTAINER,
        members,
        kind=f"distributed checkpoint in {len(names)} safetensors shards",
        findings=tuple(findings),
        problem=None if root else DamagedFile("none of its shards has a tensor"),
    )
    return replace(joined, root=root or None)


def _hf_offsets(member: Contents) -> dict[str, tuple[int, ...]]:
    """Return where in its tensor each piece of a safetensors shard starts."""
    try:
        table = json.loads(member.metadata.get(_HF_FACTS, "{}"))
    except (ValueError, RecursionError):
        return {}
    offsets = {}
    for key, facts in (table if isinstance(table, dict) else {}).items():
        start = facts.get("saved_offsets") if isinstance(facts, dict) else None
        if isinstance(start, list) and all(type(n) is int and 0 <= n < 1 << 60 for n in start):
            offsets[key] = tuple(start)
    return offsets


def _hf_tensor(
    key: str, parts: list[tuple[Box, TensorEntry]], findings: list[Finding]
) -> TensorEntry:
    """Return a tensor from its pieces. How large it is, is known from the pieces alone."""
    first = parts[0][1]
    ends = [tuple(a + b for a, b in zip(box.offsets, box.shape, strict=True)) for box, _ in parts]
    same_kind = [len(end) == len(ends[0]) for end in ends]
    if not all(same_kind) or any(entry.dtype != first.dtype for _, entry in parts):
        text = f"the pieces of {shown(key)} are of several kinds"
        findings.append(Finding("other-piece", "ambiguous", "", text))
        return first
    shape = tuple(max(sizes) for sizes in zip(*ends, strict=True))
    whole = SavedTensor(first.dtype, shape, tuple(box for box, _ in parts))
    if len(parts) == 1 and first.shape == shape:
        return first
    if problem := tiling(whole):
        severity: Any = "damaged" if "in none" in problem else "ambiguous"
        findings.append(Finding("missing-piece", severity, "", f"{shown(key)}: {problem}"))
    chunks = tuple(
        Chunk(box.offsets, box.shape, path, entry.storage.offset or 0, entry.nbytes)
        for box, entry in parts
        if (path := entry.storage.path) is not None
    )
    return TensorEntry(
        first.dtype, shape, contiguous_stride(shape), Storage(key, 0, None), chunks=chunks
    )


def _with_companions(folder: Folder, contents: Contents) -> Contents:
    """Add the other model files of the folder, such as Megatron's `common.pt`."""
    own = (METADATA, *_shards(folder))
    names = [
        name
        for name in folder.files
        if name not in own and not _OF_RANK.fullmatch(name) and not _HF_SHARD.fullmatch(name)
    ]
    members = {name: folder.examine(name) for name in names[: max(folder.budget.left, 0)]}
    members = {
        name: member
        for name, member in members.items()
        if not isinstance(member.problem, NotAModelFile)
    }
    if not members:
        return contents
    joined = join_members(folder.path, 0, CONTAINER, members, findings=tuple(_unreadable(members)))
    root = contents.root if isinstance(contents.root, dict) else {}
    return replace(
        contents,
        root={**{name: value for name, value in joined.root.items() if name not in root}, **root},
        globals=tuple(dict.fromkeys((*contents.globals, *joined.globals))),
        findings=(*contents.findings, *joined.findings),
        members=(*contents.members, *joined.members),
    )


KIND = FolderKind(CONTAINER, _matches, describe)
