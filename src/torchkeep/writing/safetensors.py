"""The writer of safetensors files. `formats/safetensors.py` has the layout.

Sizes and places follow from names, shapes and dtypes alone, so the whole file is reserved before
the first byte is written. Threads then hash and write the tensors, and the header comes last,
since it holds their digests. Never more than a few tensors are copied at a time.

Tensors are ordered by dtype, widest first, then by name, as the reference implementation does, so
that each is aligned to its element size. Names that are the same tensor are stored once, and the
others recorded in `__metadata__` under `torchkeep.tied`, and once more as `dropped name: kept
name`, which is how `safetensors.torch.save_model` does it. A reader can't tell the latter from
other metadata, and trusts the former.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path

from torchkeep.contents import FOREIGN_BITS
from torchkeep.errors import SaveRefused
from torchkeep.files import (
    GROUP_NBYTES,
    Buffer,
    OutputFile,
    Progress,
    atomic_file,
    digest,
    grouped_by_size,
    in_parallel,
    memory_at,
    new_digest,
)
from torchkeep.formats.own.metadata import DIGESTS, FACTS, TIED
from torchkeep.formats.safetensors import DTYPES, MAX_HEADER_NBYTES
from torchkeep.writing.payload import Payload
from torchkeep.writing.report import SaveReport
from torchkeep.writing.stream import Meter, write_payload

_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {
    dtype: dtype.upper() for dtype in FOREIGN_BITS
}
"""The format's names of the dtypes that it has."""

_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8"),
    *("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
"""The reference implementation's order of dtypes, narrowest first."""

_RANKS = {name: -rank for rank, name in enumerate(_ORDER)}
_ALIGNMENT = 64
"""Where PyTorch puts tensors in memory, too: bytes are copied fastest between places alike."""

_NO_DIGEST = "0" * 32


@dataclass(frozen=True, slots=True)
class TensorData:
    """A tensor that is to be written: what the header says of it, and its bytes."""

    dtype: str
    """PyTorch's name of the element type, or one of `contents.FOREIGN_BITS`."""
    shape: tuple[int, ...]
    """Its sizes."""
    payload: Payload
    """Its elements in C order."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor and where it goes, in bytes from the start of the payload."""

    name: str
    dtype: str
    data: TensorData
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """How much room it takes."""
        return self.end - self.begin

    def row(self) -> str:
        """Return what the header says about it, as JSON."""
        shape = list(self.data.shape)
        if self.data.dtype in _PAIRS:  # PyTorch counts pairs, the format elements
            shape[-1] *= 2
        sizes = ",".join(map(str, shape))
        return (
            f'{_text(self.name)}:{{"dtype":"{self.dtype}","shape":[{sizes}],'
            f'"data_offsets":[{self.begin},{self.end}]}}'
        )


_PAIRS = ("float4_e2m1fn_x2",)
_text = json.JSONEncoder(ensure_ascii=False).encode


def write_safetensors(
    tensors: Mapping[str, TensorData],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SaveReport:
    """Write named tensors; the file appears whole or not at all.

    The bytes follow from the arguments alone: the same tensors and metadata give the same file.

    Args:
        tensors: what is stored, by name. Names that have the very same object are one tensor, which
            is stored once. Payloads are read once, from several threads.
        path: the file.
        metadata: texts for the header's `__metadata__`. The tensors' digests are added.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there.
        progress: is called as the tensors' bytes are written.

    Raises:
        SaveRefused: a tensor can't be stored in this format (it is named), or the place can't be
            written to. An old file is intact.
    """
    layout = Layout(tensors, metadata or {})
    meter = Meter(progress, layout.payload_nbytes)
    with atomic_file(path, durable=durable, overwrite=overwrite) as file:
        digests = layout.write(file, meter)
    return SaveReport(Path(path), layout.nbytes, len(digests), digests, layout.tied)


class Layout:
    """A file that is laid out and can be written: its rows, its texts, the place of each tensor.

    Args:
        tensors: what is stored, by name; one tensor may have several.
        metadata: texts for the header.
        alignment: the payload starts at a multiple of so many bytes, itself a multiple of 64.

    Attributes:
        names: of all tensors, in the order in which they were given.
        tied: the names that are left out, each with the one that stands for it.
        runs: the bytes of each tensor, in the file's order.
        header_nbytes: where the tensors begin.
        nbytes: the size of the file.
        payload_nbytes: that of the tensors in it.

    Raises:
        SaveRefused: a tensor, a name or a key can't be stored in this format, or there are so many
            that the header would be larger than the format allows.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorData],
        metadata: Mapping[str, str],
        *,
        alignment: int = _ALIGNMENT,
    ) -> None:
        _check_names(tensors)
        _check_keys(metadata, tensors)
        kept, self.tied = untied(tensors)
        self.names = tuple(tensors)
        self._alignment = alignment
        self._places = _place(kept)
        self.runs = {place.name: place.nbytes for place in self._places}
        self._texts = {**self.tied, "format": "pt", **metadata, TIED: _compact(self.tied)}
        self._rows = f"{{{','.join([place.row() for place in self._places])}}}"
        self.header_nbytes = len(self.header(dict.fromkeys(self.names, _NO_DIGEST)))
        self.payload_nbytes = self._places[-1].end if self._places else 0
        self.nbytes = self.header_nbytes + self.payload_nbytes

    def write(self, file: OutputFile, meter: Meter) -> dict[str, str]:
        """Write everything; return the digests by name."""
        file.reserve(self.nbytes)
        groups = (_runs if file.wants_runs else _groups)(self._places)
        written = in_parallel(
            lambda group: self._write_group(file, group, meter), groups, file.num_threads
        )
        found = {name: text for digests in written for name, text in digests.items()}
        found.update({name: found[kept] for name, kept in self.tied.items()})
        digests = {name: found[name] for name in self.names}
        file.write_at(0, self.header(digests))
        return digests

    def write_part(self, file: OutputFile, begin: int, end: int) -> dict[str, str]:
        """Write those bytes of the tensors that belong into a part of the file, and no header.

        Args:
            file: where to; others may write other parts of it.
            begin: where the part begins, in bytes from the start of the file.
            end: where it ends.

        Returns:
            The digests of the tensors that lie in it as a whole, by name.
        """
        inside = self._inside(begin, end)
        digests: dict[str, str] = {}
        for is_whole, some in groupby(self._touched(inside), partial(_lies_in, inside)):
            for group in (_runs if file.wants_runs else _groups)(list(some)):
                if is_whole:
                    digests |= self._write_group(file, group, Meter(None, 0))
                else:
                    self._write_between(file, group, inside)
        return digests

    def names_within(self, begin: int, end: int) -> list[str]:
        """Return which tensors lie in a part of the file as a whole."""
        inside = self._inside(begin, end)
        return [place.name for place in self._touched(inside) if _lies_in(inside, place)]

    def _inside(self, begin: int, end: int) -> tuple[int, int]:
        """Return which part of the payload lies in a part of the file."""
        start = self.header_nbytes
        return max(begin - start, 0), min(end - start, self.payload_nbytes)

    def _touched(self, inside: tuple[int, int]) -> list[_Place]:
        begin, end = inside
        return [place for place in self._places if place.begin < end and place.end > begin]

    def _write_between(
        self, file: OutputFile, group: list[_Place], inside: tuple[int, int]
    ) -> None:
        """Write what some neighbours have in a part of the payload."""
        first, last = max(group[0].begin, inside[0]), min(group[-1].end, inside[1])
        position = self.header_nbytes + first
        for data in _bytes_between(group, first, last):
            file.write_at(position, data)
            position += len(data)

    def places_of(self, names: Collection[str]) -> list[tuple[int, int]]:
        """Return where in the file these tensors lie: where each begins, and ends."""
        start = self.header_nbytes
        return [(start + p.begin, start + p.end) for p in self._places if p.name in names]

    def _write_group(self, file: OutputFile, group: list[_Place], meter: Meter) -> dict[str, str]:
        """Write neighbours in one call; return their digests by name."""
        offset, begin = self.header_nbytes + group[0].begin, group[0].begin
        if len(group) == 1:
            place, state = group[0], new_digest()
            write_payload(file, offset, place.data.payload, meter, state.update)
            return {place.name: state.hexdigest()}
        run: Buffer | None = _memory_of(group)
        if run is None:
            run = b"".join(place.data.payload.joined(0, place.nbytes) for place in group)
        meter.add(len(run))
        file.write_at(offset, run)
        view = memoryview(run)
        return {
            place.name: digest(view[place.begin - begin : place.end - begin]) for place in group
        }

    def header(self, digests: Mapping[str, str]) -> bytes:
        """Return the length and the JSON, padded so that the payload starts where it should.

        Two files with the same header hold the same tensors, as far as their digests tell.
        """
        metadata = _compact({**self._texts, DIGESTS: _compact(digests)})
        separator = "," if self._places else ""
        text = f'{{"__metadata__":{metadata}{separator}{self._rows[1:]}'.encode()
        text += b" " * (-(8 + len(text)) % self._alignment)
        if len(text) > MAX_HEADER_NBYTES:
            raise SaveRefused(
                f"the header would take {len(text):,} bytes, and safetensors allows "
                f"{MAX_HEADER_NBYTES:,}",
                advice="Save less metadata, or as .pth.",
            )
        return len(text).to_bytes(8, "little") + text


def untied(tensors: Mapping[str, TensorData]) -> tuple[dict[str, TensorData], dict[str, str]]:
    """Return the tensors to store, and the names left out by the name that stands for them."""
    kept: dict[str, TensorData] = {}
    tied: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, data in tensors.items():
        first = seen.setdefault(id(data), name)
        if first == name:
            kept[name] = data
        else:
            tied[name] = first
    return kept, tied


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(name, str) or name == "__metadata__" or not is_utf8(name):
            raise SaveRefused(
                f"{name!r} is no name that safetensors can store",
                advice="Rename it, or save as .pth.",
            )


def _check_keys(metadata: Iterable[str], names: Container[str]) -> None:
    """Raise if the header would say two things under one name."""
    for key in metadata:
        if key in names and key not in FACTS:
            raise SaveRefused(
                f"metadata key {key!r} is the name of a tensor too", advice="Rename the key."
            )


def is_utf8(text: str) -> bool:
    """Whether a header can have a text: it has no half of a surrogate pair in it."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _place(tensors: Mapping[str, TensorData]) -> list[_Place]:
    for name, data in tensors.items():
        _check_dtype(name, data)
    places, position = [], 0
    for name in in_order({name: data.dtype for name, data in tensors.items()}):
        data = tensors[name]
        end = position + data.payload.nbytes
        places.append(_Place(name, _NAMES[data.dtype], data, position, end))
        position = end
    return places


def _groups(places: list[_Place]) -> list[list[_Place]]:
    """Return neighbours that are small together."""
    return grouped_by_size(places, lambda place: place.nbytes)


def _runs(places: list[_Place]) -> list[list[_Place]]:
    """Return neighbours that lie side by side in memory as well, if that is much; else as above."""
    runs: list[list[_Place]] = []
    expected = None
    for place in places:
        address = place.data.payload.address
        if not runs or (place.nbytes and (address is None or address != expected)):
            runs.append([])
        runs[-1].append(place)
        if place.nbytes:
            expected = None if address is None else address + place.nbytes
    parts: list[list[_Place]] = []
    for is_much, some in groupby(runs, lambda run: run[-1].end - run[0].begin >= GROUP_NBYTES):
        few = list(some)
        parts += few if is_much else _groups(list(chain.from_iterable(few)))
    return parts


def _memory_of(places: list[_Place]) -> memoryview | None:
    """Return the memory of neighbours that lie side by side in it; None if they don't.

    Small ones may as well, in a group that nobody asked it of.
    """
    begin, address = places[0].begin, places[0].data.payload.address
    if address is None:
        return None
    for place in places:
        if place.nbytes and place.data.payload.address != address + place.begin - begin:
            return None
    return memory_at(address, places[-1].end - begin)


def _lies_in(inside: tuple[int, int], place: _Place) -> bool:
    return inside[0] <= place.begin and place.end <= inside[1]


def _bytes_between(places: list[_Place], first: int, last: int) -> Iterator[Buffer]:
    """Yield what lies between two bytes of the payload, in neighbouring tensors."""
    memory = _memory_of(places)
    if memory is not None:
        begin = places[0].begin
        yield memory[first - begin : last - begin]
        return
    for place in places:
        begin, end = max(place.begin, first), min(place.end, last)
        if begin < end:
            yield from map(
                _as_bytes, place.data.payload.read(begin - place.begin, end - place.begin)
            )


def _as_bytes(data: Buffer) -> memoryview:
    return memoryview(data).cast("B")


def in_order(dtypes: Mapping[str, str]) -> list[str]:
    """Return the names of tensors as they follow each other in a file.

    Args:
        dtypes: PyTorch's names of their dtypes; what this format lacks may stand anywhere.
    """
    ranks = {dtype: _RANKS.get(_NAMES.get(dtype, ""), 0) for dtype in set(dtypes.values())}
    return sorted(dtypes, key=lambda name: (ranks[dtypes[name]], name.encode()))


def _check_dtype(name: str, data: TensorData) -> None:
    if data.dtype not in _NAMES or (data.dtype in _PAIRS and not data.shape):
        raise SaveRefused(
            f"tensor {name!r} has dtype {data.dtype}, which safetensors lacks",
            advice="Save as .pth, or convert it first.",
        )


def _compact(table: object) -> str:
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"))
