"""The pickle of a torch zip: what `formats.torch` reads, written again from what it read.

A tensor is a call of a rebuild function on a persistent id, as `torch.save` writes it. Where it
starts in its storage, and how long that is, follows from all tensors that use it. So these numbers
are left open while the tree is walked, and filled in by `Pickling.finished`.

Source: torch/_tensor.py (`__reduce_ex__`), torch/_utils.py (`_rebuild_*`), torch/serialization.py
(`persistent_id`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torchkeep.contents import ITEM_SIZE, Global, Storage, TensorEntry, Value
from torchkeep.errors import SaveRefused
from torchkeep.formats.torch.objects import STORAGE_DTYPES
from torchkeep.writing.layouts import recipe
from torchkeep.writing.pickle_stream import FLAGS, PickleStream, integer, unicode

Place = tuple[int, int]
"""Where in its storage, in bytes, what is kept of it starts, and how long that is."""

_CLASSES = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}
"""The classes that name a dtype in a file. Later dtypes have none, and use an untyped storage."""

_REBUILD_TYPED = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_UNTYPED = Global("torch._utils", "_rebuild_tensor_v3")
_REBUILD_QUANTIZED = Global("torch._utils", "_rebuild_qtensor")
_REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_ORDERED = Global("collections", "OrderedDict")
_OPEN = b""
"""Stands in the stream for a number that is not known yet."""


class Pickling(PickleStream):
    """A tree that is pickled but for the places of its tensors.

    Args:
        root: inert values, as `contents` lists them, without `Array` and `Files`.

    Attributes:
        tensors: each tensor by its path: keys and positions from the root, joined by dots. What a
            tensor is made of stands below its own path.
        storages: the tensors' storages by `id`, in the order of their keys: "0", "1", ...

    Raises:
        SaveRefused: a value has no place in such a pickle (its path is named), or a tuple, a set or
            an object's argument contains itself.
    """

    def __init__(self, root: Value) -> None:
        super().__init__()
        self.tensors: dict[str, TensorEntry] = {}
        self.storages: dict[int, Storage] = {}
        self._holes: list[tuple[int, TensorEntry, int]] = []
        self._sizes: dict[tuple[int, ...], bytes] = {}
        self._keys: dict[int, bytes] = {}
        self._part_names: dict[int, str] = {}
        self._recipes: list[Value] = []  # kept, since what was written is recalled by its id
        try:
            self.write(root, "")
        except RecursionError:
            raise SaveRefused(
                "the value is nested too deeply to be stored", advice="Flatten it."
            ) from None
        self.out.append(b".")

    def finished(self, places: Mapping[int, Place]) -> bytes:
        """Return the stream, given the place of each storage by the storage's `id`."""
        out = self.out
        for index, entry, width in self._holes:
            begin, nbytes = places[id(entry.storage)]
            offset = entry.storage_offset - begin // ITEM_SIZE[entry.dtype] if entry.numel else 0
            out[index] = integer(nbytes // width)
            out[index + 2] = integer(offset)
        return b"".join(out)

    def _tensor(self, entry: TensorEntry, path: str) -> None:
        if entry.is_parameter:
            self._parameter(entry, path)
        else:
            self._plain_tensor(entry, path, requires_grad=entry.requires_grad)
        self.keep(entry)

    def _parameter(self, entry: TensorEntry, path: str) -> None:
        self.out += (self.name(_REBUILD_PARAMETER), b"(")
        self._plain_tensor(entry, path, requires_grad=False)
        self.out += (FLAGS[entry.requires_grad], self.name(_ORDERED), b")RtR")

    def _plain_tensor(self, entry: TensorEntry, path: str, *, requires_grad: bool) -> None:
        if entry.layout != "strided" or entry.is_composite:
            self._part_names |= {id(part): f"{path}.{name}" for name, part in entry.parts}
            self._recipes.append(recipe(entry, path))
            self.write(self._recipes[-1], path)
            return
        path = self._part_names.get(id(entry), path)
        while path in self.tensors:  # {"a": {"b": ..}, "a.b": ..} has two of the same path
            path += "~"
        self.tensors[path] = entry
        kind = _CLASSES.get(entry.dtype)
        rebuild = _REBUILD_TYPED if kind else _REBUILD_UNTYPED
        self.out += (self.name(_REBUILD_QUANTIZED if entry.quantizer else rebuild), b"(")
        self._view(entry, kind or "UntypedStorage")
        if entry.quantizer:
            self._part_names |= {id(part): f"{path}.{name}" for name, part in entry.parts}
            self._recipes.append(_quantizer(entry))
            self.write(self._recipes[-1], path)
        # A dictionary of its own: hooks of one tensor are not another's.
        self.out += (FLAGS[requires_grad], self.name(_ORDERED), b")R")
        if kind is None:
            self.out.append(self.name(Global("torch", entry.dtype)))
        if entry.is_conj or entry.is_neg:
            self.write({"conj": entry.is_conj, "neg": entry.is_neg}, path)
        self.out.append(b"tR")

    def _view(self, entry: TensorEntry, kind: str) -> None:
        """Write the storage and the view of it, two numbers left open."""
        storage, out = entry.storage, self.out
        width = ITEM_SIZE[STORAGE_DTYPES[kind]]
        out += (
            b"(",
            self.text("storage"),
            self.name(Global("torch.storage" if kind == "UntypedStorage" else "torch", kind)),
            self._key(storage),
            self.text(storage.device),
        )
        self._holes.append((len(out), entry, width))
        out += (_OPEN, b"tQ", _OPEN, self._tuple_of(entry.shape), self._tuple_of(entry.stride))

    def _key(self, storage: Storage) -> bytes:
        known = self._keys.get(id(storage))
        if known is None:
            known = self._keys[id(storage)] = unicode(str(len(self.storages)))
            self.storages[id(storage)] = storage
        return known

    def _tuple_of(self, numbers: tuple[int, ...]) -> bytes:
        known = self._sizes.get(numbers)
        if known is None:
            known = self._sizes[numbers] = b"(" + b"".join(map(integer, numbers)) + b"t"
        return known


Pickling.writers = {**PickleStream.writers, TensorEntry: Pickling._tensor}  # type: ignore[dict-item]


def _quantizer(entry: TensorEntry) -> tuple[Value, ...]:
    """Return the scheme, then scale and zero point, or their tensors or lists and the axis."""
    scheme, *rest = entry.quantizer
    return (Global("torch", scheme), *(part for _, part in entry.parts), *rest)
