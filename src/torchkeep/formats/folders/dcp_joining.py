"""Puts a distributed checkpoint together: what its metadata tells, from the shards beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torchkeep.contents import (
    Box,
    Chunk,
    Finding,
    Global,
    Object,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
)
from torchkeep.errors import FileProblem
from torchkeep.files import InputFile
from torchkeep.formats.folders.dcp_metadata import Place, Saved, SavedTensor, tiling
from torchkeep.formats.folders.dcp_nest import SHAPE, Nest, told_shape
from torchkeep.formats.folders.dcp_shards import Pieces
from torchkeep.formats.folders.folder import Folder, listed, shown, way_out
from torchkeep.wording import counted

MOST_PIECES = 2_000
"""Pieces of tensors that are looked into; each takes a third of a millisecond."""
NOT_READ = Global("torch.distributed.checkpoint", "<not read>")
"""The callee of the `Object` that stands for a pickled object that could not be read."""
_MOST_FINDINGS = 100

_Severity = Literal["note", "needs-trust", "ambiguous", "dangerous", "damaged"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a tensor, or an object, and where it lies."""

    key: str
    box: Box | None
    place: Place


@dataclass(frozen=True, slots=True)
class Joined:
    """A distributed checkpoint, put together."""

    root: dict[Value, Value]
    """The nested state dict."""
    findings: tuple[Finding, ...]
    """What is wrong with it."""
    globals: tuple[Global, ...]
    """What the archives in its shards name."""
    nbytes: int
    """Size of the shards that are there."""


def put_together(folder: Folder, saved: Saved, *, is_alone: bool) -> Joined:
    """Return what a metadata tells, as far as it is in the shards beside it.

    Args:
        folder: where the shards are.
        saved: what the metadata says.
        is_alone: whether the metadata is a file with a name of its own, perhaps without shards.
    """
    joining = _Joining(folder, saved, is_alone=is_alone)
    root = joining.root()
    findings = (*joining.findings, *joining.pieces.findings_and_problems())
    return Joined(root, findings, tuple(joining.pieces.globals), joining.nbytes)


class _Joining:
    """What was found so far."""

    def __init__(self, folder: Folder, saved: Saved, *, is_alone: bool) -> None:
        self.folder = folder
        self.is_alone = is_alone
        self.saved = saved
        self.findings: list[Finding] = []
        self.pieces = Pieces(folder.limits)
        self.nbytes = 0
        self.opened: dict[Place, Value] = {}
        self.usable: set[Place] = set()
        self.untiled: set[str] = set()

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
        gaps: dict[str, str] = {}
        overlaps: dict[str, str] = {}
        for key, item in self.saved.items.items():
            problem = None if item is None else tiling(item)
            if problem is not None:
                (gaps if problem.is_gap else overlaps)[key] = problem.text
        self.untiled = {*gaps, *overlaps}
        if gaps:
            text = f"parts of {counted(len(gaps), 'tensor')} were written by no rank: "
            told = (f"{key}: {problem}" for key, problem in gaps.items())
            self.note("missing-piece", "damaged", text + listed(told))
        if overlaps:
            text = f"the pieces of {counted(len(overlaps), 'tensor')} contradict: "
            told = (f"{key}: {problem}" for key, problem in overlaps.items())
            self.note("overlapping-pieces", "ambiguous", text + listed(told))

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
            text = f"no shard has a place for {counted(len(nowhere), 'piece')}: {listed(nowhere)}"
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
            # Somebody may have kept the metadata, under a name of its own, and nothing else.
            is_kept = self.is_alone and len(missing) == len(files)
            self.note("missing-file", "note" if is_kept else "damaged", text)
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
            num = counted(len(cut_off), "piece")
            text = f"{file} is truncated: {num} would end behind it, {listed(cut_off)}"
            self.note("truncated", "damaged", text)
        if shared:
            num = counted(len(shared), "piece")
            text = f"bytes of {num} in {file} are those of others, too: {listed(shared)}"
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
                    is_asked_for = (piece.box is None or looks) and place not in self.opened
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
        """Return a tensor: a view of its shard if it lies there whole, else made of chunks.

        One of which something is missing has neither, and can't be read: its other parts would
        be put beside whatever the memory holds. Nor has one whose pieces overlap, since these may
        leave a gap as well.
        """
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
        is_whole = len(chunks) == len(item.boxes) and key not in self.untiled
        return TensorEntry(
            dtype=item.dtype,
            shape=item.shape,
            stride=contiguous_stride(item.shape),
            storage=Storage(key, 0, None),
            requires_grad=item.requires_grad,
            chunks=tuple(chunks) if is_whole else (),
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
        told = told_shape(self.saved.facts.get(SHAPE))
        nest = Nest(sum(map(len, (*paths.values(), *told.empty))))
        clashes = [key for key, value in flat.items() if not nest.put(paths[key], value)]
        for key in clashes:
            nest.root.setdefault(key, flat[key])
        if clashes:
            num = counted(len(clashes), "key")
            text = f"the paths of {num} contradict others: {listed(clashes)}"
            self.note("path-clash", "ambiguous", text)
        nest.reshape(told)
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
