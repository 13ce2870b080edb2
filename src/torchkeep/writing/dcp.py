"""The writer of distributed checkpoints (DCP): a folder that any number of ranks can load.

`formats/folders/dcp.py` has the layout. Tensors are split along their first dimension as FSDP2
shards them (`torch.chunk`: the last ranks may have less, or nothing); what has no dimension or no
elements is written whole, and like all other values by the rank that has least to write.

A tensor is read once, from its start to its end, and its pieces go to the ranks' files as it
passes. So memory stays near what a payload gives at a time.

Source: torch/distributed/checkpoint/default_planner.py, filesystem.py; `Shard(0)` of
torch/distributed/tensor/placement_types.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from torchkeep.contents import (
    ITEM_SIZE,
    ROW_BITS,
    Box,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
)
from torchkeep.errors import SaveRefused
from torchkeep.files import Buffer, OutputFile, Progress, atomic_file, new_digest
from torchkeep.formats.folders.dcp import METADATA
from torchkeep.formats.folders.dcp_metadata import Place, SavedTensor
from torchkeep.formats.folders.dcp_nest import SHAPE
from torchkeep.formats.own.metadata import DIGESTS
from torchkeep.writing.dcp_flat import Flat
from torchkeep.writing.dcp_metadata import Plan, pickled_metadata
from torchkeep.writing.payload import Payload
from torchkeep.writing.report import SaveReport
from torchkeep.writing.stream import Meter
from torchkeep.writing.torch_zip import Archive, PayloadOf

_MOST_OPEN = 128
"""Files that are written at a time; with more ranks, tensors are read in several parts."""


def write_dcp(
    flat: Flat,
    elements_of: Callable[[TensorEntry], Payload],
    payload_of: PayloadOf,
    folder: Path,
    num_ranks: int,
    *,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
    progress: Progress | None = None,
) -> SaveReport:
    """Write a state dict into an empty folder; its `.metadata` comes last.

    Args:
        flat: the state dict, flat.
        elements_of: gives the elements of a tensor in C order.
        payload_of: gives the bytes of the storage of a tensor that is in some other value.
        folder: where to; nothing else may be in it.
        num_ranks: how many files there are.
        metadata: texts about it. The tensors' digests are added.
        durable: sync the files and the folder.
        progress: is called as the tensors' bytes are written.

    Raises:
        SaveRefused: a tensor or a value can't be stored (it is named), or the place can't be
            written to.
    """
    writing = _Writing(flat, elements_of, payload_of, num_ranks, progress)
    for start in range(0, num_ranks, _MOST_OPEN):
        writing.write_ranks(folder, range(start, min(start + _MOST_OPEN, num_ranks)), durable)
    digests = {key: state.hexdigest() for key, state in writing.digests.items()}
    texts = {**(metadata or {}), DIGESTS: json.dumps(digests, separators=(",", ":"))}
    if flat.empty or flat.numbered:
        texts[SHAPE] = flat.shape.to_json()
    data = pickled_metadata(writing.plan, texts)
    with atomic_file(folder / METADATA, durable=durable) as file:
        file.write_at(0, data)
    files = (folder / METADATA, *(folder / _shard(rank) for rank in range(num_ranks)))
    nbytes = len(data) + sum(writing.ends)
    return SaveReport(folder, nbytes, len(digests), digests, files=files)


def _shard(rank: int) -> str:
    return f"__{rank}_0.distcp"


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a tensor, or a whole value, and the rank that writes it."""

    rank: int
    number: int | None
    box: Box


class _Writing:
    """A checkpoint that is being written: which rank has what, and where it went."""

    def __init__(
        self,
        flat: Flat,
        elements_of: Callable[[TensorEntry], Payload],
        payload_of: PayloadOf,
        num_ranks: int,
        progress: Progress | None,
    ) -> None:
        self.values = flat.values
        self.elements_of = elements_of
        self.payload_of = payload_of
        self.parts = _split(flat.values, num_ranks)
        self.plan = Plan(paths=dict(flat.paths))
        for key, value in flat.values.items():
            boxes = tuple(part.box for part in self.parts[key])
            is_tensor = isinstance(value, TensorEntry)
            self.plan.items[key] = (
                SavedTensor(value.dtype, value.shape, boxes, value.requires_grad)
                if is_tensor
                else None
            )
        tensors = {key: it for key, it in flat.values.items() if isinstance(it, TensorEntry)}
        self.digests = {key: new_digest() for key in tensors}
        self.meter = Meter(progress, sum(entry.nbytes for entry in tensors.values()))
        self.ends = [0] * num_ranks

    def write_ranks(self, folder: Path, ranks: range, durable: bool) -> None:
        """Write the files of some ranks."""
        with ExitStack() as stack:
            files = {
                rank: stack.enter_context(atomic_file(folder / _shard(rank), durable=durable))
                for rank in ranks
            }
            for key, value in self.values.items():
                parts = [part for part in self.parts[key] if part.rank in ranks]
                if parts and isinstance(value, TensorEntry):
                    self.write_tensor(key, value, parts, files)
                elif parts:
                    archive = Archive(value, self.payload_of)
                    self.write_archive(archive, key, parts[0], files)

    def write_tensor(
        self, key: str, entry: TensorEntry, parts: list[_Part], files: Mapping[int, OutputFile]
    ) -> None:
        """Write neighbouring pieces of a tensor."""
        row = prod(entry.shape[1:]) * ITEM_SIZE[entry.dtype]
        begins = [part.box.offsets[0] * row if entry.shape else 0 for part in parts]
        nbytes = [prod(part.box.shape) * ITEM_SIZE[entry.dtype] for part in parts]
        runs = _Runs(self._observed(key, self.elements_of(entry), begins[0], sum(nbytes)))
        for part, size in zip(parts, nbytes, strict=True):
            shape = part.box.shape
            piece = TensorEntry(
                entry.dtype, shape, contiguous_stride(shape), Storage(key, size, None)
            )
            self.write_archive(Archive(piece, partial(_next, runs)), key, part, files)

    def _observed(self, key: str, payload: Payload, begin: int, nbytes: int) -> Iterator[Buffer]:
        for run in payload.read(begin, begin + nbytes):
            self.digests[key].update(run)
            self.meter.add(len(run))
            yield run

    def write_archive(
        self, archive: Archive, key: str, part: _Part, files: Mapping[int, OutputFile]
    ) -> None:
        """Write what a rank writes next."""
        start = self.ends[part.rank]
        archive.write(files[part.rank], start)
        self.ends[part.rank] += archive.nbytes
        place = Place(_shard(part.rank), start, archive.nbytes)
        self.plan.places[key, part.number] = place


def _next(runs: _Runs, storage: Storage) -> Payload:
    """Return the bytes of the piece whose turn it is."""
    return Payload(storage.nbytes, lambda begin, end: runs.take(end - begin))


class _Runs:
    """Bytes that come in runs, taken in pieces."""

    def __init__(self, runs: Iterable[Buffer]) -> None:
        self._runs = iter(runs)
        self._rest = memoryview(b"")

    def take(self, nbytes: int) -> Iterator[memoryview]:
        """Yield the next bytes, or as many as there are."""
        while nbytes:
            if not self._rest:
                run = next(self._runs, None)
                if run is None:
                    return
                self._rest = memoryview(run)
            part = self._rest[:nbytes]
            self._rest = self._rest[len(part) :]
            nbytes -= len(part)
            yield part


def _split(values: Mapping[str, Value], num_ranks: int) -> dict[str, list[_Part]]:
    """Return which rank writes which part of each value."""
    loads = [0] * num_ranks
    parts: dict[str, list[_Part]] = {}
    whole: list[str] = []
    for key, value in values.items():
        if isinstance(value, TensorEntry):
            _check(key, value)
        if isinstance(value, TensorEntry) and value.numel and value.shape:
            parts[key] = split_rows(value.shape, num_ranks)
            for part in parts[key]:
                loads[part.rank] += prod(part.box.shape) * ITEM_SIZE[value.dtype]
        else:
            whole.append(key)
    for key in whole:
        value, rank = values[key], loads.index(min(loads))
        is_tensor = isinstance(value, TensorEntry)
        box = Box((0,) * len(value.shape), value.shape) if is_tensor else Box((), ())
        parts[key] = [_Part(rank, 0 if is_tensor else None, box)]
        loads[rank] += _ARCHIVE_NBYTES
    return parts


_ARCHIVE_NBYTES = 1024
"""About what the smallest archive takes: a value is there for the balance alone."""


def split_rows(shape: tuple[int, ...], num_ranks: int) -> list[_Part]:
    """Return the pieces of a tensor that has elements, as `torch.chunk` makes them."""
    rows = -(-shape[0] // num_ranks)
    zeros = (0,) * (len(shape) - 1)
    return [
        _Part(rank, rank, Box((start, *zeros), (min(rows, shape[0] - start), *shape[1:])))
        for rank, start in enumerate(range(0, shape[0], rows))
    ]


def _check(key: str, entry: TensorEntry) -> None:
    """Raise unless a tensor is a plain one whose elements are whole bytes."""
    what = ""
    if entry.quantizer or entry.layout != "strided" or (entry.is_composite and not entry.chunks):
        what = "quantized" if entry.quantizer else f"a {entry.class_path or entry.layout} tensor"
    elif entry.dtype not in ITEM_SIZE or entry.dtype in ROW_BITS:
        what = f"of {entry.dtype}, whose elements share bytes"
    if what:
        raise SaveRefused(
            f"tensor {key!r} is {what}, which a distributed checkpoint has not",
            advice="Convert to .pth, or make it a plain tensor first.",
        )
