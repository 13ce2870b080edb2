"""The writer of torch zips (`.pth`). `formats/torch/zip.py` has the layout.

It differs from `torch.save` in what it leaves out and adds:

* only the range of a storage that the saved tensors cover is written, not the whole of it;
* every record has its CRC-32, which `zipfile` and `unzip -t` check (`torch.load` does not);
* a record `torchkeep.json` holds the metadata and the tensors' digests; `torch.load` ignores it;
* the same values give the same bytes, whatever the file's name.

Plain `torch.load(weights_only=True)` reads the result, also with `mmap=True`. Tensors that shared
memory share it again; Python attributes of a tensor and its hooks are not stored.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2, _rebuild_tensor_v3

from torchkeep.errors import SaveRefused
from torchkeep.files import (
    OutputFile,
    atomic_file,
    digest,
    grouped_by_size,
    in_parallel,
    new_digest,
)
from torchkeep.formats.own.metadata import DIGESTS, METADATA_RECORD
from torchkeep.saving.report import SaveReport
from torchkeep.saving.trees import StoredTree, Tree
from torchkeep.saving.zip_layout import central_directory, lay_out, local_header
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu

_NO_DIGEST = "0" * 32
_PROTOCOL = 2

_STORAGE_CLASSES: dict[torch.dtype, type] = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
    torch.complex64: torch.ComplexFloatStorage,
    torch.complex128: torch.ComplexDoubleStorage,
}
"""The classes that name a dtype in a file. Later dtypes have none, and use an untyped storage."""

_StorageId = tuple[object, ...]


@dataclass(slots=True)
class _Block:
    """The bytes that some tensors share, cut to what they cover."""

    key: str
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    begin: int = sys.maxsize
    end: int = 0

    @property
    def record(self) -> str:
        return f"data/{self.key}"

    @property
    def nbytes(self) -> int:
        return max(self.end - self.begin, 0)

    @property
    def sample(self) -> torch.Tensor:
        return next(iter(self.tensors.values()))

    def add(self, path: str, tensor: torch.Tensor) -> None:
        if self.tensors and tensor.dtype != self.sample.dtype:
            raise SaveRefused(
                f"tensors {next(iter(self.tensors))!r} ({dtype_name(self.sample.dtype)}) and "
                f"{path!r} ({dtype_name(tensor.dtype)}) are the same memory with two dtypes",
                advice="Save a clone() of one of them.",
            )
        self.tensors[path] = tensor
        if tensor.numel():
            begin, end = _extent(tensor)
            self.begin, self.end = min(self.begin, begin), max(self.end, end)

    def offset_of(self, tensor: torch.Tensor) -> int:
        """Return where in the block the tensor starts, in elements."""
        if not tensor.numel():
            return 0
        return int(tensor.storage_offset()) - self.begin // tensor.element_size()

    def is_covered_by(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's elements in C order are the block's bytes."""
        return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == self.nbytes

    def bytes(self) -> memoryview:
        """Return the block's bytes, copied only if they are on another device."""
        if not self.nbytes:
            return memoryview(b"")
        run = torch.empty(0, dtype=torch.uint8, device=self.sample.device)
        run.set_(self.sample.untyped_storage(), self.begin, (self.nbytes,), (1,))
        return bytes_of(run.cpu())


def write_torch_zip(
    tree: Tree,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
    overwrite: bool = False,
) -> SaveReport:
    """Write a tree of tensors and plain values; the file appears whole or not at all.

    Args:
        tree: dicts, lists, tuples and sets of tensors, numbers, texts and bytes.
        path: the file.
        metadata: texts for the record `torchkeep.json`. The tensors' digests are added.
        durable: sync the file and its folder, so that a power loss can't undo the save.
        overwrite: replace what is there.

    Raises:
        SaveRefused: a value can't be stored (its path is named), or the place can't be written to.
            An old file is intact.
    """
    archive = _Archive(StoredTree(tree), metadata or {})
    with atomic_file(path, durable=durable, overwrite=overwrite) as file:
        file.reserve(archive.directory_offset)
        digests, nbytes = archive.write(file)
    return SaveReport(Path(path), nbytes, len(digests), digests)


class _Archive:
    """All records of the archive and their places. Checksums are known when they are written."""

    def __init__(self, stored: StoredTree, metadata: Mapping[str, str]) -> None:
        self.metadata = metadata
        self.tensors = stored.tensors
        self.blocks = _blocks(stored.tensors)
        self.small = {
            "data.pkl": _pickled(stored.root, self.blocks),
            "byteorder": sys.byteorder.encode(),
            "version": b"3\n",
            ".data/serialization_id": b"0" * 40,
            METADATA_RECORD: self._metadata_text(dict.fromkeys(stored.tensors, _NO_DIGEST)),
        }
        sizes = [(name, len(data)) for name, data in self.small.items()]
        sizes += [(block.record, block.nbytes) for block in self.blocks.values()]
        self.records = {record.name: record for record in lay_out(sizes)}
        self.directory_offset = max(record.end for record in self.records.values())

    def write(self, file: OutputFile) -> tuple[dict[str, str], int]:
        """Write everything; return the tensors' digests by path, and the archive's size."""
        groups = grouped_by_size(self.blocks.values(), lambda block: block.nbytes)
        written = in_parallel(lambda group: self._write_blocks(file, group), groups)
        sums = list(chain.from_iterable(written))
        found = {path: text for item in sums for path, text in item.digests.items()}
        digests = {path: found[path] for path in self.tensors}
        crc32s = {item.record: item.crc32 for item in sums}
        self.small[METADATA_RECORD] = self._metadata_text(digests)
        self.small[".data/serialization_id"] = _serialization_id(self.small["data.pkl"], crc32s)
        for name, data in self.small.items():
            record, crc32s[name] = self.records[name], zlib.crc32(data)
            file.write_at(record.header_offset, local_header(record, crc32s[name]) + data)
        directory = central_directory(list(self.records.values()), crc32s)
        file.write_at(self.directory_offset, directory)
        return digests, self.directory_offset + len(directory)

    def _write_blocks(self, file: OutputFile, blocks: list[_Block]) -> list[_Sums]:
        """Write neighbours, small ones in one call."""
        first = self.records[blocks[0].record]
        if len(blocks) == 1:
            sums = [_write_block(file, first.offset, blocks[0])]
            file.write_at(first.header_offset, local_header(first, sums[0].crc32))
            return sums
        sums = []
        parts: list[bytes | memoryview] = []
        for block in blocks:
            view = block.bytes()
            sums.append(_sums(block, zlib.crc32(view), digest(view)))
            parts += [local_header(self.records[block.record], sums[-1].crc32), view]
        file.write_at(first.header_offset, b"".join(parts))
        return sums

    def _metadata_text(self, digests: Mapping[str, str]) -> bytes:
        table = {**self.metadata, DIGESTS: json.dumps(digests, separators=(",", ":"))}
        return json.dumps(table, indent=1).encode()


@dataclass(frozen=True, slots=True)
class _Sums:
    """What was computed of a block while it was written."""

    record: str
    crc32: int
    digests: dict[str, str]


def _write_block(file: OutputFile, offset: int, block: _Block) -> _Sums:
    crc32, state = 0, new_digest()

    def observe(chunk: memoryview) -> None:
        nonlocal crc32
        crc32 = zlib.crc32(chunk, crc32)
        state.update(chunk)

    file.write_at(offset, block.bytes(), observe=observe)
    return _sums(block, crc32, state.hexdigest())


def _sums(block: _Block, crc32: int, whole: str) -> _Sums:
    """Return the block's checksums; `whole` is the digest of all its bytes."""
    digests = {
        path: whole if block.is_covered_by(tensor) else digest(bytes_of(plain_on_cpu(tensor)))
        for path, tensor in block.tensors.items()
    }
    return _Sums(block.record, crc32, digests)


def _serialization_id(pickled: bytes, crc32s: Mapping[str, int]) -> bytes:
    """Return 40 decimal digits that follow from the contents, as PyTorch's own do."""
    text = repr((digest(pickled), sorted(crc32s.items())))
    return f"{int(digest(text.encode()), 16):040d}".encode()


# --- Storages ----------------------------------------------------------------------------------


def _blocks(tensors: Mapping[str, torch.Tensor]) -> dict[_StorageId, _Block]:
    """Group tensors by the memory they share."""
    blocks: dict[_StorageId, _Block] = {}
    for path, tensor in tensors.items():
        block = blocks.setdefault(_storage_id(tensor), _Block(str(len(blocks))))
        block.add(path, tensor)
    return blocks


def _storage_id(tensor: torch.Tensor) -> _StorageId:
    if tensor.numel() == 0:  # nothing to share, and no address to tell it by
        return (id(tensor),)
    return (tensor.device, tensor.untyped_storage().data_ptr())


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the range of bytes in its storage that a non-empty tensor covers."""
    begin, count = int(tensor.storage_offset()), tensor.numel()
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        count = 1 + sum((int(size) - 1) * int(step) for size, step in steps)
    return begin * tensor.element_size(), (begin + count) * tensor.element_size()


# --- The pickle --------------------------------------------------------------------------------


def _pickled(root: Tree, blocks: Mapping[_StorageId, _Block]) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, blocks).dump(root)
    return stream.getvalue()


@dataclass(frozen=True, slots=True)
class _Data:
    """What lies in a parameter, apart from its being one."""

    tensor: torch.Tensor


class _Pickler(pickle.Pickler):
    """Writes tensors as `torch.save` does: a call of a rebuild function on a persistent id.

    What we rely on in torch/_utils.py is the argument lists of `_rebuild_tensor_v2`, `_v3` and
    `_rebuild_parameter`, which files have had since 0.4 and which can't change without making
    those unreadable.
    """

    def __init__(self, stream: io.BytesIO, blocks: Mapping[_StorageId, _Block]) -> None:
        super().__init__(stream, protocol=_PROTOCOL)
        self._blocks = blocks

    def persistent_id(self, obj: Any) -> tuple[object, ...] | None:
        """Return how a storage is named in the file; None for everything that isn't one."""
        if not isinstance(obj, _Block):
            return None
        kind = _STORAGE_CLASSES.get(obj.sample.dtype, torch.UntypedStorage)
        width = 1 if kind is torch.UntypedStorage else obj.sample.element_size()
        return ("storage", kind, obj.key, str(obj.sample.device), obj.nbytes // width)

    def reducer_override(self, obj: Any) -> Any:
        """Return the call that makes a tensor or a parameter again."""
        if isinstance(obj, torch.nn.Parameter):
            return _rebuild_parameter, (_Data(obj), obj.requires_grad, OrderedDict())
        if isinstance(obj, torch.Tensor):
            return self._rebuilt(obj, requires_grad=obj.requires_grad)
        if isinstance(obj, _Data):
            return self._rebuilt(obj.tensor, requires_grad=False)
        return NotImplemented

    def _rebuilt(self, tensor: torch.Tensor, *, requires_grad: bool) -> tuple[Any, tuple[Any, ...]]:
        block = self._blocks[_storage_id(tensor)]
        view = (block, block.offset_of(tensor), tuple(tensor.shape), tensor.stride())
        args: tuple[Any, ...] = (*view, requires_grad, OrderedDict())
        if tensor.dtype in _STORAGE_CLASSES:
            return _rebuild_tensor_v2, args
        return _rebuild_tensor_v3, (*args, tensor.dtype)
