"""The `.metadata` of a distributed checkpoint, as an inert value that is pickled.

`formats/folders/dcp_metadata.py` has the layout, and reads it. What torchkeep says about a file
stands in an attribute of its own, which PyTorch carries along and does not look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torchkeep.contents import Global, Object, Value
from torchkeep.formats.folders.dcp_metadata import OWN_TEXTS, Place, SavedTensor
from torchkeep.writing.dcp_flat import Path
from torchkeep.writing.pickle_stream import PickleStream

_METADATA = "torch.distributed.checkpoint.metadata"
_STORAGE_INFO = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = Global("torch", "Size")
_STRIDED = Object(Global("torch.serialization", "_get_layout"), ("torch.strided",))
_CONTIGUOUS = Object(Global(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))
_VERSION = "1.0.0"
"""`CURRENT_DCP_VERSION` of PyTorch."""


@dataclass(slots=True)
class Plan:
    """What a distributed checkpoint holds, and where."""

    items: dict[str, SavedTensor | None] = field(default_factory=dict)
    """Tensors by flat key; None stands for any other value."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Where in the nested state dict a key stands."""
    places: dict[tuple[str, int | None], Place] = field(default_factory=dict)
    """Where each lies, by key and number of the piece; None is that of a value."""


def pickled_metadata(plan: Plan, texts: Mapping[str, str]) -> bytes:
    """Return the `.metadata`.

    Args:
        plan: what is told.
        texts: what torchkeep says about it.
    """
    sizes = _Sizes()
    state: dict[Value, Value] = {
        "state_dict_metadata": {
            key: _made("BytesStorageMetadata") if item is None else _tensor(item, sizes)
            for key, item in plan.items.items()
        },
        "planner_data": dict(plan.paths),
        "storage_data": {
            _index(plan, key, number, sizes): _info(place)
            for (key, number), place in plan.places.items()
        },
        "storage_meta": None,
        "version": _VERSION,
        OWN_TEXTS: dict(texts),
    }
    stream = PickleStream()
    stream.write(_made("Metadata", state), "")
    return b"".join((*stream.out, b"."))


class _Sizes:
    """`torch.Size` objects, one for all that are equal."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Object] = {}

    def __call__(self, numbers: tuple[int, ...]) -> Object:
        if numbers not in self._known:
            self._known[numbers] = Object(_SIZE, (numbers,))
        return self._known[numbers]


def _made(name: str, state: Value = None) -> Object:
    return Object(Global(_METADATA, name), (), state=state)


def _tensor(item: SavedTensor, sizes: _Sizes) -> Object:
    # Its state is a tuple of its own making: dtype, layout, requires_grad, format, is pinned.
    properties = (Global("torch", item.dtype), _STRIDED, item.requires_grad, _CONTIGUOUS, False)
    return _made(
        "TensorStorageMetadata",
        {
            "properties": _made("TensorProperties", properties),
            "size": sizes(item.shape),
            "chunks": [
                _made(
                    "ChunkStorageMetadata",
                    {"offsets": sizes(box.offsets), "sizes": sizes(box.shape)},
                )
                for box in item.boxes
            ],
        },
    )


def _index(plan: Plan, key: str, number: int | None, sizes: _Sizes) -> Object:
    state: dict[Value, Value] = {"fqn": key, "index": number}
    item = plan.items[key]
    if item is not None and number is not None:
        state["offset"] = sizes(item.boxes[number].offsets)
    return _made("MetadataIndex", state)


def _info(place: Place) -> Object:
    state: dict[Value, Value] = {
        "relative_path": place.file,
        "offset": place.start,
        "length": place.nbytes,
    }
    return Object(_STORAGE_INFO, (), state=state)
