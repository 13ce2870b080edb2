"""The `.metadata` of a distributed checkpoint, as a pickle that is put together from its opcodes.

`formats/folders/dcp_metadata.py` has the layout, and reads it. What torchkeep says about a file
stands in an attribute of its own, which PyTorch carries along and does not look at.

Checkpoints of many ranks have a hundred thousand pieces, and more. So what is told of a piece is
written at once, and no tree of all of them is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchkeep.contents import Box, Global, Object
from torchkeep.formats.folders.dcp_metadata import OWN_TEXTS, Place, SavedTensor
from torchkeep.formats.folders.dcp_nest import Way
from torchkeep.writing.pickle_stream import FLAGS, PickleStream, integer

_MODULE = "torch.distributed.checkpoint.metadata"
_METADATA = Global(_MODULE, "Metadata")
_TENSOR = Global(_MODULE, "TensorStorageMetadata")
_BYTES = Global(_MODULE, "BytesStorageMetadata")
_PROPERTIES = Global(_MODULE, "TensorProperties")
_CHUNK = Global(_MODULE, "ChunkStorageMetadata")
_INDEX = Global(_MODULE, "MetadataIndex")
_INFO = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = Global("torch", "Size")
_STRIDED = Object(Global("torch.serialization", "_get_layout"), ("torch.strided",))
_CONTIGUOUS = Object(Global(_MODULE, "_MEM_FORMAT_ENCODING"), (0,))
_VERSION = "1.0.0"
"""`CURRENT_DCP_VERSION` of PyTorch."""


@dataclass(slots=True)
class Plan:
    """What a distributed checkpoint holds, and where."""

    items: dict[str, SavedTensor | None] = field(default_factory=dict)
    """Tensors by flat key; None stands for any other value."""
    paths: dict[str, Way] = field(default_factory=dict)
    """Where in the nested state dict a key stands."""
    places: dict[tuple[str, int | None], Place] = field(default_factory=dict)
    """Where each lies, by key and number of the piece; None is that of a value."""


def pickled_metadata(plan: Plan, texts: Mapping[str, str]) -> bytes:
    """Return the `.metadata`.

    Args:
        plan: what is told.
        texts: what torchkeep says about it.
    """
    stream = _Stream()
    stream.metadata(plan, texts)
    return b"".join((*stream.out, b"."))


class _Stream(PickleStream):
    """The pickle, written from its start to its end."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[tuple[int, ...], bytes] = {}

    def metadata(self, plan: Plan, texts: Mapping[str, str]) -> None:
        self.out.append(self.made(_METADATA) + b"}(")
        self.out.append(self.text("state_dict_metadata") + b"}(")
        for key, item in plan.items.items():
            self.out.append(self.text(key))
            self.item(item)
        self.out.append(b"u" + self.text("planner_data"))
        self.write(dict(plan.paths), "")
        self.out.append(self.text("storage_data") + b"}(")
        for (key, number), place in plan.places.items():
            item = plan.items[key]
            box = None if item is None or number is None else item.boxes[number]
            self.out.append(self.index(key, number, box) + self.place(place))
        self.out.append(b"u" + self.text("storage_meta") + b"N")
        self.out.append(self.text("version") + self.text(_VERSION))
        self.out.append(self.text(OWN_TEXTS))
        self.write(dict(texts), "")
        self.out.append(b"ub")

    def made(self, name: Global) -> bytes:
        """Return what makes an object of a class, which gets its state after that."""
        return self.name(name) + b")\x81"

    def item(self, item: SavedTensor | None) -> None:
        if item is None:
            self.out.append(self.made(_BYTES))
            return
        # The properties have a state of their own making: a tuple.
        self.out += (self.made(_TENSOR), b"}(", self.text("properties"), self.made(_PROPERTIES))
        self.out += (b"(", self.name(Global("torch", item.dtype)))
        self.write(_STRIDED, "")
        self.out.append(FLAGS[item.requires_grad])
        self.write(_CONTIGUOUS, "")
        self.out += (FLAGS[False], b"tb", self.text("size"), self.size(item.shape))
        self.out += (self.text("chunks"), b"](", *map(self.chunk, item.boxes), b"eub")

    def chunk(self, box: Box) -> bytes:
        offsets = self.text("offsets") + self.size(box.offsets)
        return self.with_state(_CHUNK, (offsets, self.text("sizes"), self.size(box.shape)))

    def index(self, key: str, number: int | None, box: Box | None) -> bytes:
        parts = [self.text("fqn"), self.text(key), self.text("index")]
        parts.append(b"N" if number is None else integer(number))
        if box is not None:
            parts += (self.text("offset"), self.size(box.offsets))
        return self.with_state(_INDEX, parts)

    def place(self, place: Place) -> bytes:
        file = self.text("relative_path") + self.text(place.file)
        start = self.text("offset") + integer(place.start)
        return self.with_state(_INFO, (file, start, self.text("length"), integer(place.nbytes)))

    def with_state(self, name: Global, parts: Iterable[bytes]) -> bytes:
        """Return an object whose attributes are these: keys and values in turn."""
        return b"".join((self.made(name), b"}(", *parts, b"ub"))

    def size(self, numbers: tuple[int, ...]) -> bytes:
        """Return a `torch.Size`, one for all that are equal."""
        known = self._sizes.get(numbers)
        if known is None:
            put, self._sizes[numbers] = self.remember()
            sizes = b"".join(map(integer, numbers))
            known = self.name(_SIZE) + b"((" + sizes + b"ttR" + put
        return known
