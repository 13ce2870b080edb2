"""The `.metadata` of a distributed checkpoint: what was saved, in which pieces, and where they lie.

It is a pickle of `torch.distributed.checkpoint.metadata.Metadata`:

    state_dict_metadata   {key: TensorStorageMetadata(properties, size, chunks) or
                                BytesStorageMetadata()}
    planner_data          {key: path}: where in the nested state dict a flat key stands
    storage_data          {MetadataIndex(fqn, offset, index): _StorageInfo(relative_path, offset,
                                length, transform_descriptors)}
    storage_meta, version and what others (Megatron's `mcore_data`) added
    torchkeep             {key: text}: what torchkeep says about a checkpoint that it wrote, the
                                tensors' digests among it

It is run as any pickle here, which makes nothing, and each of its parts is checked before it is
used. Classes go by their bare names, since they have moved: `torch.distributed._shard.checkpoint`
(1.13), `torch.distributed._shard.sharded_tensor.metadata` (`TensorProperties` up to 2.2).

Limits: the layout of PyTorch 1.12, with one file per tensor and no `storage_data`, is refused.

Source: torch/distributed/checkpoint/metadata.py and filesystem.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from torchkeep.contents import Box, Finding, Global, Object, Value
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.files import Readable
from torchkeep.formats.folders.folder import listed
from torchkeep.formats.torch.objects import read_dtype, sizes
from torchkeep.formats.torch.unpickling import bytes_behind, run_torch_pickle
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.source import ByteSource
from torchkeep.wording import counted

OWN_TEXTS = "torchkeep"
"""The attribute of the metadata that torchkeep adds."""

_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.")

_MOST_DIMENSIONS = 64
_MOST_SPLIT_DIMENSIONS = 6
"""Dimensions along which one tensor is split; more than three were not seen."""
_LONGEST_PATH = 100
"""Levels of nesting of the state dict."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies."""

    file: str
    """Its shard, as the metadata names it; it need not be a safe name."""
    start: int
    nbytes: int
    packing: tuple[str, ...] = ()
    """What was done to its bytes, such as `stream.zstd/1`; empty if nothing."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor as the metadata tells it."""

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    requires_grad: bool = False


@dataclass(slots=True)
class Saved:
    """What a `.metadata` says, checked."""

    items: dict[str, SavedTensor | None] = field(default_factory=dict)
    """Tensors by flat key; None stands for an object that is pickled in a shard."""
    places: dict[tuple[str, tuple[int, ...] | None], Place] = field(default_factory=dict)
    """Where each lies, by key and offsets; an object has no offsets."""
    paths: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    """Where in the nested state dict a flat key stands."""
    facts: dict[str, str] = field(default_factory=dict)
    """What it says about itself."""
    globals: tuple[Global, ...] = ()
    findings: list[Finding] = field(default_factory=list)

    def place_of(self, key: str, box: Box | None) -> Place | None:
        """Return where a piece of a tensor, or an object, lies; None if that is not told."""
        if box is None:
            return self.places.get((key, None))
        found = self.places.get((key, box.offsets))
        return found or self.places.get((key, None))


def read_metadata(file: Readable, limits: Limits) -> Saved:
    """Return what a `.metadata` says.

    Raises:
        DamagedFile: it is truncated, or is no metadata.
        LimitReached: it is larger than a limit allows.
        UnsupportedContent: it has the layout of PyTorch 1.12.
    """
    source = ByteSource(file.read_at, 0, file.nbytes)
    pickled = run_torch_pickle(source, limits=limits, file=file)
    findings = [*pickled.findings, *bytes_behind(source)]
    saved = Saved(globals=pickled.globals, findings=findings)
    try:
        _Reading(saved, _FREE_BOXES + file.nbytes // _LEAST_NBYTES_OF_BOX).read(pickled.root)
    except (DamagedFile, LimitReached, UnsupportedContent) as problem:
        problem.seen = pickled
        raise
    return saved


class _Reading:
    """One reading of a metadata object; what makes no sense is left out, and told of."""

    def __init__(self, saved: Saved, room: int) -> None:
        self.saved = saved
        self.room = room  # pieces that may still come: a pickle can name one many times
        self.broken: list[str] = []
        self.twice: list[str] = []

    def read(self, root: Value) -> None:
        if not is_a(root, "Metadata"):
            raise DamagedFile("the pickle is not the metadata of a distributed checkpoint")
        parts = root.attributes
        items, places = parts.get("state_dict_metadata"), parts.get("storage_data")
        if not isinstance(items, dict):
            raise DamagedFile("the metadata has no state_dict_metadata")
        if places is None and any(
            is_a(item, "ShardedTensorStorageMetadata") for item in items.values()
        ):
            raise UnsupportedContent("the metadata has the layout of PyTorch 1.12")
        for key, item in items.items():
            self.add_item(key, item)
        for index, info in _pairs(places):
            self.add_place(index, info)
        for key, path in _pairs(parts.get("planner_data")):
            self.add_path(key, path)
        self.add_facts(parts)
        self.tell()

    def add_item(self, key: Value, item: Value) -> None:
        self.room -= 1 + _num_chunks(item)
        if self.room < 0:
            raise LimitReached(
                "the metadata unfolds into far more pieces than it has bytes",
                advice="No training program writes such a file.",
            )
        if not isinstance(key, str):
            self.broken.append(f"<{type(key).__name__}>")
        elif is_a(item, "BytesStorageMetadata"):
            self.saved.items[key] = None
        elif is_a(item, "TensorStorageMetadata"):
            try:
                self.saved.items[key] = _saved_tensor(item)
            except ValueError:
                self.broken.append(key)
        else:
            self.broken.append(key)

    def add_place(self, index: Value, info: Value) -> None:
        at, place = _attributes(index), _place(info)
        key, offset = at.get("fqn"), at.get("offset")
        if place is None or not isinstance(key, str) or not (offset is None or _is_sizes(offset)):
            self.broken.append(key if isinstance(key, str) else "<unnamed>")
            return
        name = (key, None if offset is None else tuple(offset))
        if self.saved.places.setdefault(name, place) != place:
            self.twice.append(key)

    def add_path(self, key: Value, path: Value) -> None:
        if (
            isinstance(key, str)
            and isinstance(path, tuple | list)
            and 0 < len(path) <= _LONGEST_PATH
            and all(isinstance(part, str) or type(part) is int for part in path)
        ):
            self.saved.paths[key] = tuple(path)

    def add_facts(self, parts: dict[Value, Value]) -> None:
        about = _attributes(parts.get("storage_meta"))
        told = {"version": parts.get("version"), "save_id": about.get("save_id")}
        self.saved.facts = {
            key: value
            for key, value in told.items()
            if isinstance(value, str) and len(value) <= _LONGEST_FACT
        }
        for key, text in _pairs(parts.get(OWN_TEXTS)):
            if isinstance(key, str) and isinstance(text, str):
                self.saved.facts[key] = text

    def tell(self) -> None:
        if self.broken:
            text = f"the metadata makes no sense at {counted(len(self.broken), 'place')}: "
            self.note("metadata", "damaged", text + listed(self.broken))
        if self.twice:
            text = (
                f"two places are told of {counted(len(self.twice), 'piece')}: {listed(self.twice)}"
            )
            self.note("two-places", "ambiguous", text)

    def note(self, rule: str, severity: str, text: str) -> None:
        finding = Finding(rule, severity, "", text)  # type: ignore[arg-type]
        self.saved.findings.append(finding)


_LONGEST_FACT = 200
_FREE_BOXES = 1_000
_LEAST_NBYTES_OF_BOX = 8
"""What a piece takes at least in an honest pickle; 40 bytes were seen."""


def _num_chunks(item: Value) -> int:
    chunks = _attributes(item).get("chunks")
    return len(chunks) if isinstance(chunks, list | tuple) else 0


def is_a(value: Value, name: str) -> bool:
    """Whether a value is an object of a class of this bare name from torch.distributed."""
    if not isinstance(value, Object) or not isinstance(value.callee, Global):
        return False
    return value.callee.name == name and value.callee.module.startswith(_MODULES)


def _attributes(value: Value) -> dict[Value, Value]:
    return value.attributes if isinstance(value, Object) else {}


def _pairs(value: Value) -> Iterable[tuple[Value, Value]]:
    return value.items() if isinstance(value, dict) else ()


def _is_sizes(value: Value) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def _saved_tensor(item: Object) -> SavedTensor:
    """Return a tensor; ValueError if its parts make no sense."""
    parts = item.attributes
    properties = parts.get("properties")
    if not isinstance(properties, Object) or not is_a(properties, "TensorProperties"):
        raise ValueError("a tensor without properties")
    state = properties.state
    if isinstance(state, dict):  # up to PyTorch 1.11 it had no state of its own making
        dtype, requires_grad = state.get("dtype"), state.get("requires_grad")
    elif isinstance(state, tuple) and len(state) > 2:
        dtype, requires_grad = state[0], state[2]
    else:
        raise ValueError("properties without a dtype")
    shape, chunks = sizes(parts.get("size")), parts.get("chunks")
    if not _is_sizes(shape) or prod(shape) >= 1 << 60 or not isinstance(chunks, list | tuple):
        raise ValueError("a tensor without sizes or pieces")
    boxes = tuple(_box(chunk, shape) for chunk in chunks)
    return SavedTensor(read_dtype(dtype), shape, boxes, requires_grad is True)


def _box(chunk: Value, whole: tuple[int, ...]) -> Box:
    parts = _attributes(chunk)
    offsets, shape = parts.get("offsets"), parts.get("sizes")
    if not _is_sizes(offsets) or not _is_sizes(shape):
        raise ValueError("a piece without offsets or sizes")
    box = Box(sizes(offsets), sizes(shape))
    if not len(box.offsets) == len(box.shape) == len(whole) or any(
        start + size > end for start, size, end in zip(box.offsets, box.shape, whole, strict=True)
    ):
        raise ValueError("a piece that reaches out of its tensor")
    return box


def _place(info: Value) -> Place | None:
    parts = _attributes(info)
    file: Value = parts.get("relative_path")
    start: Value = parts.get("offset")
    nbytes: Value = parts.get("length")
    packing = parts.get("transform_descriptors") or ()
    if (
        not is_a(info, "_StorageInfo")
        or not isinstance(file, str)
        or not _is_sizes((start, nbytes))
        or not isinstance(packing, list | tuple)
        or not all(isinstance(step, str) for step in packing)
    ):
        return None
    return Place(file, start, nbytes, tuple(packing))


@dataclass(frozen=True, slots=True)
class BadTiling:
    """What is wrong with the pieces of a tensor."""

    is_gap: bool
    """Whether some of its elements are in no piece; else some are in two."""
    text: str


def tiling(tensor: SavedTensor) -> BadTiling | None:
    """Return what is wrong with a tensor's pieces; None if each element is in exactly one.

    Boxes cover a box exactly if their volumes add up and each corner but those of the whole is
    shared by an even number of them: an even number of corners means that the number of boxes
    around any point is odd, as for the whole.
    """
    boxes = [box for box in tensor.boxes if prod(box.shape)]
    volume, expected = sum(prod(box.shape) for box in boxes), prod(tensor.shape)
    if volume < expected:
        return BadTiling(True, f"{expected - volume} of {expected} elements are in no piece")
    split = [
        axis
        for axis, size in enumerate(tensor.shape)
        if any(box.shape[axis] != size for box in boxes)
    ]
    if len(split) > _MOST_SPLIT_DIMENSIONS:
        return BadTiling(False, f"split along {len(split)} dimensions, which can't be checked")
    odd: set[tuple[int, ...]] = set()
    for box in boxes:
        odd ^= set(_corners(box, split))
    whole = Box((0,) * len(tensor.shape), tensor.shape)
    if volume > expected or (expected and odd != set(_corners(whole, split))):
        return BadTiling(False, "its pieces overlap")
    return None


def _corners(box: Box, axes: list[int]) -> Iterable[tuple[int, ...]]:
    corners: list[tuple[int, ...]] = [()]
    for axis in axes:
        ends = (box.offsets[axis], box.offsets[axis] + box.shape[axis])
        corners = [(*corner, end) for corner in corners for end in ends]
    return corners
