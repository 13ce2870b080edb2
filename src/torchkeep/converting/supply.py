"""The source's tensors, as the two writers take them."""

from __future__ import annotations

from dataclasses import replace

from torchkeep.contents import Memory, Storage, TensorEntry, contiguous_stride
from torchkeep.converting.casting import Caster
from torchkeep.elements import ElementReader, part_nbytes
from torchkeep.errors import SaveRefused
from torchkeep.writing.payload import Payload
from torchkeep.writing.safetensors import TensorData


class Supply:
    """Hands out the tensors of a source: as they are, cast, or put together.

    Args:
        reader: reads the source.
        caster: casts the tensors that are to be cast; None if none are.
    """

    def __init__(self, reader: ElementReader, caster: Caster | None) -> None:
        self._reader = reader
        self._caster = caster
        self._data: dict[tuple[Memory, bool], TensorData] = {}
        self._entries: dict[tuple[int, bool], TensorEntry] = {}
        self._sources: list[TensorEntry] = []  # so that their ids stay their own
        self._payloads: dict[int, Payload] = {}
        self._number_nbytes: dict[int, int] = {}
        self._origins: dict[Memory, tuple[TensorEntry, str, bool]] = {}

    def data(self, entry: TensorEntry, name: str, *, cast: bool) -> TensorData:
        """Return a tensor by itself; the same object for the same elements of one memory.

        Raises:
            SaveRefused: it is none that safetensors has.
            FileProblem: it can't be read.
        """
        entry = unwrapped(entry)
        if entry.quantizer or (entry.is_composite and not entry.chunks):
            kind = "quantized" if entry.quantizer else entry.class_path or entry.layout
            raise SaveRefused(
                f"tensor {name!r} is {kind}, which safetensors has not",
                advice="Convert to .pth, or make it a plain tensor first.",
            )
        key = entry.memory, cast
        if entry.chunks or key not in self._data:
            dtype = self._dtype(entry, cast=cast)
            payload = self.elements(entry, name, cast=cast)
            self._sources.append(entry)
            self._data[key] = TensorData(dtype, entry.shape, payload)
        return self._data[key]

    def elements(self, entry: TensorEntry, name: str, *, cast: bool) -> Payload:
        """Return the elements of a tensor as they are to be written.

        Raises:
            FileProblem: it can't be read.
        """
        payload = self._reader.payload(entry, name)
        if cast and self._caster is not None and self._dtype(entry, cast=True) != entry.dtype:
            return self._caster.payload(payload, entry.dtype, name)
        return payload

    def entry(self, entry: TensorEntry, name: str, *, cast: bool) -> TensorEntry:
        """Return a tensor for a torch zip: a view of its storage, whose bytes `payload_of` gives.

        Raises:
            FileProblem: it can't be read.
        """
        key = id(entry), cast
        if key not in self._entries:
            made = self._entry(unwrapped(entry), name, cast=cast)
            self._sources.append(entry)
            self._entries[key] = made
            self._origins[made.memory] = unwrapped(entry), name, cast
        return self._entries[key]

    def _entry(self, entry: TensorEntry, name: str, *, cast: bool) -> TensorEntry:
        if entry.parts:
            parts = tuple(
                (key, self.entry(part, f"{name}.{key}", cast=False)) for key, part in entry.parts
            )
            entry = replace(entry, parts=parts)
        if entry.is_composite and not entry.chunks:
            return entry
        dtype = self._dtype(entry, cast=cast)
        if not entry.chunks and dtype == entry.dtype:
            self._reader.payload(entry, name)  # it is checked now, and has its name here
            self._number_nbytes.setdefault(id(entry.storage), part_nbytes(dtype))
            return entry
        payload = self.elements(entry, name, cast=cast)
        storage = Storage(name, payload.nbytes, None)
        self._payloads[id(storage)] = payload
        return replace(
            entry,
            dtype=dtype,
            stride=contiguous_stride(entry.shape),
            storage=storage,
            storage_offset=0,
            chunks=(),
            class_path="",
            is_conj=False,
            is_neg=False,
        )

    def origin(self, entry: TensorEntry) -> tuple[TensorEntry, str, bool]:
        """Return what an entry that was handed out was made of: the source's, and how."""
        return self._origins[entry.memory]

    def payload_of(self, storage: Storage) -> Payload:
        """Return the bytes of a storage of an entry that was handed out."""
        if id(storage) in self._payloads:
            return self._payloads[id(storage)]
        return self._reader.stored(storage, self._number_nbytes[id(storage)])

    def _dtype(self, entry: TensorEntry, *, cast: bool) -> str:
        is_cast = cast and self._caster is not None and self._caster.casts(entry.dtype)
        return self._caster.dtype if self._caster is not None and is_cast else entry.dtype


def unwrapped(entry: TensorEntry) -> TensorEntry:
    """Return the tensor in a wrapper of a class of its own that holds all of it; else itself."""
    if not entry.class_path or entry.chunks or not entry.is_composite:
        return entry
    same = [
        part for _, part in entry.parts if (part.dtype, part.shape) == (entry.dtype, entry.shape)
    ]
    return same[0] if len(same) == 1 else entry
