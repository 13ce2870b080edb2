"""The writer of torch zips (`.pth`). `formats/torch/zip.py` has the layout.

It differs from `torch.save` in what it leaves out and adds:

* only the range of a storage that the saved tensors cover is written, not the whole of it;
* every record has its CRC-32, which `zipfile` and `unzip -t` check (`torch.load` does not);
* a record `torchkeep.json` holds the metadata and the tensors' digests; `torch.load` ignores it;
* the same values give the same bytes, whatever the file's name.

Plain `torch.load(weights_only=True)` reads the result, also with `mmap=True`, as far as what the
tree names is known to it. Tensors that shared memory share it again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path

from torchkeep.contents import (
    ITEM_SIZE,
    ROW_BITS,
    Storage,
    TensorEntry,
    Value,
    contiguous_stride,
)
from torchkeep.errors import SaveRefused
from torchkeep.files import (
    OutputFile,
    Progress,
    atomic_file,
    crc32_of,
    digest,
    digest_of_pieces,
    grouped_by_size,
    in_parallel,
    new_digest,
)
from torchkeep.formats.own.metadata import DIGESTS, METADATA_RECORD
from torchkeep.writing.payload import Payload
from torchkeep.writing.pickling import Pickling
from torchkeep.writing.report import SaveReport
from torchkeep.writing.stream import Meter, write_payload
from torchkeep.writing.strided import payload_of_elements
from torchkeep.writing.zip_layout import central_directory, lay_out, local_header

_NO_DIGEST = "0" * 32

PayloadOf = Callable[[Storage], Payload]
"""Gives the bytes of a storage, in this machine's byte order."""

ElementsOf = Callable[[TensorEntry, Payload], Payload]
"""Gives a tensor's elements in C order, out of the bytes of its storage or from elsewhere."""


@dataclass(slots=True)
class _Block:
    """The bytes that some tensors share, cut to what they cover."""

    record: str
    storage: Storage
    entries: dict[str, TensorEntry] = field(default_factory=dict)
    begin: int = 0
    end: int = 0

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    def add(self, path: str, entry: TensorEntry) -> None:
        if self.entries:
            self._check_dtype(path, entry)
        self.entries[path] = entry
        if entry.numel:
            begin, end = _extent(entry)
            if end > self.storage.nbytes:
                raise SaveRefused(
                    f"tensor {path!r} reaches to byte {end} of a storage of {self.storage.nbytes}"
                )
            if self.end:
                begin, end = min(self.begin, begin), max(self.end, end)
            self.begin, self.end = begin, end

    def _check_dtype(self, path: str, entry: TensorEntry) -> None:
        first = next(iter(self.entries))
        if entry.dtype != self.entries[first].dtype:
            raise SaveRefused(
                f"tensors {first!r} ({self.entries[first].dtype}) and "
                f"{path!r} ({entry.dtype}) are the same memory with two dtypes",
                advice="Save a clone() of one of them.",
            )

    def is_covered_by(self, entry: TensorEntry) -> bool:
        """Whether the tensor's elements in C order are the block's bytes."""
        if entry.is_conj or entry.is_neg or entry.nbytes != self.nbytes:
            return False
        is_plain = entry.stride == _contiguous(entry.shape)
        return is_plain or entry.is_contiguous or entry.dtype in ROW_BITS


_contiguous = lru_cache(maxsize=1024)(contiguous_stride)
"""The strides of most tensors, found without work."""


def _extent(entry: TensorEntry) -> tuple[int, int]:
    """Return the range of bytes in its storage that a non-empty tensor covers."""
    if entry.dtype in ROW_BITS:  # its elements share bytes
        return 0, entry.nbytes_needed
    begin, width = entry.storage_offset, ITEM_SIZE[entry.dtype]
    steps = zip(entry.shape, entry.stride, strict=True)
    count = 1 + sum([(size - 1) * step for size, step in steps])
    return begin * width, (begin + count) * width


def write_torch_zip(
    root: Value,
    payload_of: PayloadOf,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    elements_of: ElementsOf = payload_of_elements,
    durable: bool = True,
    overwrite: bool = False,
    background: bool = False,
    progress: Progress | None = None,
) -> SaveReport:
    """Write a tree of inert values; the file appears whole or not at all.

    Args:
        root: the tree, see `contents`. NumPy arrays have no place in it.
        payload_of: gives the bytes of a tensor's storage. It is asked once for each, from several
            threads.
        path: the file.
        metadata: texts for the record `torchkeep.json`. The tensors' digests are added.
        elements_of: gives what the digest of a tensor is of that is no plain run of its storage;
            for who has a faster way to it.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there.
        background: take as little of the processors as can be, for somebody else computes.
        progress: is called as the tensors' bytes are written.

    Raises:
        SaveRefused: a value can't be stored (its path is named), or the place can't be written to.
            An old file is intact.
    """
    archive = Archive(
        root, payload_of, elements_of=elements_of, metadata=metadata or {}, progress=progress
    )
    with atomic_file(path, durable=durable, overwrite=overwrite, background=background) as file:
        file.reserve(archive.directory_offset)
        digests = archive.write(file)
    return SaveReport(Path(path), archive.nbytes, len(digests), digests)


class Archive:
    """All records of an archive and their places. Checksums are known when they are written.

    Args:
        root: the tree.
        payload_of: gives the bytes of a tensor's storage.
        elements_of: gives the elements of a view.
        metadata: texts for the record `torchkeep.json`; None if there is to be no such record.
        progress: is called as the tensors' bytes are written.

    Attributes:
        directory_offset: where the last record ends.
        nbytes: the size of the archive.

    Raises:
        SaveRefused: a value can't be stored; its path is named.
    """

    def __init__(
        self,
        root: Value,
        payload_of: PayloadOf,
        *,
        elements_of: ElementsOf = payload_of_elements,
        metadata: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.metadata = metadata
        self.start = 0
        self.payload_of = payload_of
        self.elements_of = elements_of
        pickling = Pickling(root)
        self.tensors = pickling.tensors
        self.blocks = _blocks(pickling)
        places = {key: (block.begin, block.nbytes) for key, block in self.blocks.items()}
        self.small = {
            "data.pkl": pickling.finished(places),
            "byteorder": sys.byteorder.encode(),
            "version": b"3\n",
            ".data/serialization_id": b"0" * 40,
        }
        if metadata is not None:
            text = self._metadata_text(metadata, dict.fromkeys(self.tensors, _NO_DIGEST))
            self.small[METADATA_RECORD] = text
        sizes = [(name, len(data)) for name, data in self.small.items()]
        sizes += [(block.record, block.nbytes) for block in self.blocks.values()]
        self.records = {record.name: record for record in lay_out(sizes)}
        self.directory_offset = max(record.end for record in self.records.values())
        no_sums = dict.fromkeys(self.records, 0)
        directory = central_directory(list(self.records.values()), no_sums)
        self.nbytes = self.directory_offset + len(directory)
        self.meter = Meter(progress, sum(block.nbytes for block in self.blocks.values()))

    def write(self, file: OutputFile, start: int = 0) -> dict[str, str]:
        """Write everything, and return the tensors' digests by path.

        Args:
            file: the file.
            start: where in it the archive starts.
        """
        self.start = start
        groups = grouped_by_size(self.blocks.values(), lambda block: block.nbytes)
        written = in_parallel(
            lambda group: self._write_blocks(file, group), groups, file.num_threads
        )
        sums = list(chain.from_iterable(written))
        found = {path: text for item in sums for path, text in item.digests.items()}
        digests = {path: found[path] for path in self.tensors}
        crc32s = {item.record: item.crc32 for item in sums}
        if self.metadata is not None:
            self.small[METADATA_RECORD] = self._metadata_text(self.metadata, digests)
        self.small[".data/serialization_id"] = _serialization_id(self.small["data.pkl"], crc32s)
        for name, data in self.small.items():
            record, crc32s[name] = self.records[name], crc32_of(data)
            file.write_at(start + record.header_offset, local_header(record, crc32s[name]) + data)
        directory = central_directory(list(self.records.values()), crc32s)
        file.write_at(start + self.directory_offset, directory)
        return digests

    def _write_blocks(self, file: OutputFile, blocks: list[_Block]) -> list[_Sums]:
        """Write neighbours, small ones in one call."""
        first = self.records[blocks[0].record]
        if len(blocks) == 1:
            sums = [self._write_block(file, self.start + first.offset, blocks[0])]
            file.write_at(self.start + first.header_offset, local_header(first, sums[0].crc32))
            return sums
        sums = []
        parts: list[bytes | bytearray | memoryview] = []
        for block in blocks:
            data = self._kept(block).joined(0, block.nbytes)
            crc32 = crc32_of(data)
            sums.append(_Sums(block.record, crc32, self._digests(block, digest(data))))
            parts += [local_header(self.records[block.record], crc32), data]
        self.meter.add(sum(block.nbytes for block in blocks))
        file.write_at(self.start + first.header_offset, b"".join(parts))
        return sums

    def _write_block(self, file: OutputFile, offset: int, block: _Block) -> _Sums:
        crc32, state = 0, new_digest()

        def observe(chunk: memoryview) -> None:
            nonlocal crc32
            crc32 = crc32_of(chunk, crc32)
            state.update(chunk)

        write_payload(file, offset, self._kept(block), self.meter, observe)
        return _Sums(block.record, crc32, self._digests(block, state.hexdigest()))

    def _kept(self, block: _Block) -> Payload:
        return self.payload_of(block.storage).part(block.begin, block.end)

    def _digests(self, block: _Block, whole: str) -> dict[str, str]:
        """Return the digests of the block's tensors; `whole` is that of all its bytes."""
        digests = dict.fromkeys(block.entries, whole)
        found: dict[int, str] = {}
        for path, entry in block.entries.items():
            if not block.is_covered_by(entry):
                if id(entry) not in found:
                    found[id(entry)] = self._digest_of_view(entry)
                digests[path] = found[id(entry)]
        return digests

    def _digest_of_view(self, entry: TensorEntry) -> str:
        payload = self.elements_of(entry, self.payload_of(entry.storage))
        return digest_of_pieces(payload.read(0, payload.nbytes))

    @staticmethod
    def _metadata_text(metadata: Mapping[str, str], digests: Mapping[str, str]) -> bytes:
        table = {**metadata, DIGESTS: json.dumps(digests, separators=(",", ":"))}
        return json.dumps(table, indent=1).encode()


@dataclass(frozen=True, slots=True)
class _Sums:
    """What was computed of a block while it was written."""

    record: str
    crc32: int
    digests: dict[str, str]


def _blocks(pickling: Pickling) -> dict[int, _Block]:
    """Return the storages of a tree by their `id`, each with what its tensors cover."""
    blocks = {
        key: _Block(f"data/{number}", storage)
        for number, (key, storage) in enumerate(pickling.storages.items())
    }
    for path, entry in pickling.tensors.items():
        blocks[id(entry.storage)].add(path, entry)
    return blocks


def _serialization_id(pickled: bytes, crc32s: Mapping[str, int]) -> bytes:
    """Return 40 decimal digits that follow from the contents, as PyTorch's own do."""
    text = repr((digest(pickled), sorted(crc32s.items())))
    return f"{int(digest(text.encode()), 16):040d}".encode()
