"""The only door between bytes and `torch.Tensor`, both ways.

Reading goes straight into the memory of the tensor that is made; no numpy, no second copy. A
tensor is a view of a storage, and what lies behind a storage's end belongs to someone else: each
view is checked against its storage before it exists, and each storage against the file.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType, TracebackType

import torch

from torchkeep.assembly import assemble, quantized
from torchkeep.contents import (
    ITEM_SIZE,
    Memory,
    Storage,
    TensorEntry,
    nbytes_of,
    numbers_of,
)
from torchkeep.elements import check_place, past_its_storage, reaches_past_its_storage
from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent
from torchkeep.files import InputFile, Stamp, changed, digest, new_digest
from torchkeep.formats.folders.dcp_shards import piece_of
from torchkeep.formats.zips.deflated import inflate_into
from torchkeep.identify.digests import differs_from_digest

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ITEM_SIZE if hasattr(torch, name)
}
_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in _DTYPES.items()}

MAPPED = "mapped"
"""What `TensorReader.match` returns for a tensor whose memory is the mapped file."""

_COMPARED_NBYTES = 1 << 20
"""What is compared in one go: it is still in the cache when it was just read."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return PyTorch's own name of a dtype, such as `float32`."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of this name, as `dtype_name` gives it.

    Raises:
        UnsupportedContent: the installed PyTorch has no such dtype.
    """
    if name not in _DTYPES:
        raise UnsupportedContent(
            f"dtype {name} is unknown to PyTorch {torch.__version__}", advice=_NEWER_TORCH
        )
    return _DTYPES[name]


_NEWER_TORCH = "Install a newer PyTorch, if there is one that has it."


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a writable view of a contiguous CPU tensor's elements, in C order.

    The view keeps the tensor alive. Writing into it changes the tensor unseen by autograd.
    """
    nbytes = nbytes_of(dtype_name(tensor.dtype), tuple(tensor.shape))
    if nbytes == 0:
        return memoryview(bytearray())
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError("only a contiguous tensor on the CPU has its elements in one run")
    run = (ctypes.c_char * nbytes).from_address(tensor.data_ptr())
    run.owner = tensor  # type: ignore[attr-defined]  # ctypes objects take attributes
    return memoryview(run).cast("B")


def plain_on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's values detached, contiguous and on the CPU; a copy only if needed."""
    # A conjugated or negated view keeps its sign in a flag, not in its bytes.
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()


def identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what two tensors have in common exactly if they are one: the same values in one place.

    A tensor without memory of its own is only itself: on `meta`, empty, sparse or nested. Both must
    be alive.
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.numel() == 0:
        return (id(tensor),)
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return (*place, tensor.is_conj(), tensor.is_neg())


def first_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return for each name the first one that the same tensor has, which may be this one."""
    # Most tensors have an address of their own, which tells it at once.
    at: dict[int, str] = {}
    identities: dict[tuple[object, ...], str] = {}
    firsts: dict[str, str] = {}
    for name, tensor in tensors.items():
        # What is sparse has no address, and is only itself.
        address = tensor.data_ptr() if tensor.layout == torch.strided else 0
        other = at.setdefault(address, name) if address else name
        if other != name:
            identities.setdefault(identity(tensors[other]), other)
            other = identities.setdefault(identity(tensor), name)
        firsts[name] = other
    return firsts


class TensorReader:
    """Makes tensors from a file, given where they lie in it.

    Entries that name the same storage share memory, as they did when they were saved; a storage
    is read once and kept until the reader is closed.

    Args:
        path: the file.
        device: where the tensors are made, whatever they were saved from.
        mmap: map the file instead of reading it. Pages are loaded when they are used, and a write
            to such a tensor stays private. The file must not be changed meanwhile.
        digests: the digests that a tensor may have, by `TensorEntry.memory`. Each of these is
            compared when it is first read; mapping reads nothing, and so compares nothing.
        remember: keep the digest of everything that is read, for `match`.
        stamps: what the files were when they were described (`Contents.stamps`). One that was
            changed or replaced since then is not read, and one that was changed meanwhile is told
            at the end of the `with` block.

    Raises:
        DamagedFile: the file is not the one that was described.
        FileMissing: there is nothing at the path.
        FileUnreadable: it may not be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        mmap: bool = False,
        digests: Mapping[Memory, Collection[str]] = MappingProxyType({}),
        remember: bool = False,
        stamps: Mapping[Path, Stamp] = MappingProxyType({}),
    ) -> None:
        self.device = torch.device(device)
        self.path = Path(path)
        self.maps = mmap
        # A sharded model lies in several files, each opened when it is first needed; what it is
        # called by may be a folder.
        self._files: dict[Path, InputFile] = {}
        self._stamps = stamps
        if not self.path.is_dir():
            self._open(self.path)
        self._maps: dict[int, torch.UntypedStorage] = {}
        self._opening = threading.Lock()
        self._storages: dict[int, tuple[Storage, torch.UntypedStorage]] = {}
        self._unchecked = dict(digests)
        self._remember = remember
        self._known: dict[Memory, str] = {}
        # What was found about entries and their paths, by id: a file has a hundred thousand. They
        # are kept, so that their ids stay theirs.
        self._sound: dict[int, TensorEntry] = {}
        self._found: dict[int, tuple[Path, InputFile]] = {}

    def _file(self, storage: Storage) -> InputFile:
        path = storage.path or self.path
        if id(path) in self._found:
            return self._found[id(path)][1]
        with self._opening:  # in several threads at once
            if path not in self._files:
                self._open(path)
            self._found[id(path)] = path, self._files[path]
            return self._files[path]

    def _open(self, path: Path) -> None:
        file = InputFile(path)
        if self._stamps.get(path, file.stamp) != file.stamp:
            file.close()
            raise changed(path)
        self._files[path] = file

    def _map(self, storage: Storage) -> torch.UntypedStorage:
        file = self._file(storage)
        if file.fd not in self._maps:
            size, path = file.nbytes, os.fspath(file.path)
            _check_named(file)
            mapped = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
            _check_named(file)
            self._maps[file.fd] = mapped.untyped_storage()
        return self._maps[file.fd]

    def materialize(self, entry: TensorEntry, name: str = "") -> torch.Tensor:
        """Return the tensor; an `nn.Parameter` if it was saved as one.

        Args:
            entry: where it lies.
            name: what to call it in an error.

        Raises:
            DamagedFile: it reaches past its storage, or its storage past the file, or it differs
                from its digest.
            UnsupportedContent: it lies packed in an archive, is quantized to parts of a byte or in
                an unknown way, is of a dtype that this PyTorch lacks, or of a class that only
                itself can put together.
        """
        self.check(entry, name)
        if entry.is_composite or entry.quantizer:
            return self._assembled(entry, name)
        tensor = _view(self._storage(entry, name), entry)
        if not self.maps:
            self._compare(tensor, entry, name)
        if entry.is_parameter:
            return torch.nn.Parameter(tensor, requires_grad=entry.requires_grad)
        return tensor.requires_grad_(entry.requires_grad)

    def read(self, entry: TensorEntry, name: str = "") -> torch.Tensor:
        """Return the tensor's values on the CPU, in memory of its own that isn't kept.

        Arguments and errors are those of `materialize`.
        """
        self.check(entry, name)
        if entry.is_composite or entry.quantizer:
            return self._assembled(entry, name).detach().cpu()
        if not self._is_plain_run(entry):
            tensor = plain_on_cpu(_view(self._read_storage(entry, name), entry))
            self._compare(tensor, entry, name)
            return tensor
        tensor = torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
        self._read_run(entry, bytes_of(tensor), name)
        return tensor

    def fill(self, tensor: torch.Tensor, entry: TensorEntry, name: str = "") -> None:
        """Read the entry's elements into an existing tensor of its shape and dtype.

        Arguments and errors are those of `materialize`. Call `verify` first if a tensor that
        differs from its digest must not be written at all.
        """
        with torch.no_grad():
            if _is_plain_run(tensor) and self._is_plain_run(entry):
                self.check(entry, name)
                self._read_run(entry, bytes_of(tensor), name)
                _count_change(tensor)
            else:
                tensor.copy_(self.read(entry, name))

    def own(self, entry: TensorEntry, name: str = "") -> torch.Tensor:
        """Return the tensor for a model to keep: mapped, if the reader maps, else as `read` does.

        Arguments and errors are those of `materialize`.
        """
        if not (self.maps and entry.nbytes and self._is_plain_run(entry) and self._can_map(entry)):
            return self.read(entry, name)
        self.check(entry, name)
        start = _first_byte(entry)
        part = self._map(entry.storage)[start : start + entry.nbytes]
        tensor = torch.empty(0, dtype=torch_dtype(entry.dtype))
        return tensor.set_(part, 0, entry.shape, entry.stride)

    def match(self, tensor: torch.Tensor, entry: TensorEntry, name: str = "") -> str:
        """Return a tensor's digest if it equals the entry, NaNs and signed zeros included.

        If it doesn't, the text is empty. A tensor that is the mapped file at the entry's place is
        not read for this, and its digest is `MAPPED`.

        Arguments and errors are those of `materialize`.
        """
        self.check(entry, name)
        if tuple(tensor.shape) != entry.shape or dtype_name(tensor.dtype) != entry.dtype:
            return ""
        if self._is_mapped(tensor, entry):
            return MAPPED
        found = digest(bytes_of(plain_on_cpu(tensor)))
        if entry.memory in self._known:
            return found if found == self._known[entry.memory] else ""
        return found if same_bits(tensor, self.read(entry, name)) else ""

    def _is_mapped(self, tensor: torch.Tensor, entry: TensorEntry) -> bool:
        mapped = self._maps.get(self._file(entry.storage).fd) if self._maps else None
        if mapped is None or not tensor.is_cpu or not tensor.is_contiguous():
            return False
        return tensor.data_ptr() == mapped.data_ptr() + _first_byte(entry)

    def verify(self, entry: TensorEntry, name: str = "") -> None:
        """Compare the entry's bytes in the file with its digest, unless that was done.

        Arguments and errors are those of `materialize`.
        """
        self.check(entry, name)
        if not self._has_unchecked_digest(entry):
            return
        if not self._is_plain_run(entry):
            self.read(entry, name)
            return
        state = new_digest()
        start = _first_byte(entry)
        buffer = memoryview(bytearray(min(entry.nbytes, _COMPARED_NBYTES)))
        for position in range(0, entry.nbytes, _COMPARED_NBYTES):
            chunk = buffer[: entry.nbytes - position]
            self._file(entry.storage).read_into(start + position, chunk)
            state.update(chunk)
        self._settle(entry, state.hexdigest(), name)

    def check(self, entry: TensorEntry, name: str = "") -> None:
        """Raise, as `materialize` would, if the entry can't be read."""
        if id(entry) not in self._sound:
            self._check(entry, name)
            self._sound[id(entry)] = entry

    def _check(self, entry: TensorEntry, name: str) -> None:
        called = f"tensor {name!r}" if name else f"a tensor in storage {entry.storage.key!r}"
        path = entry.storage.path or self.path
        if entry.dtype not in _DTYPES:
            raise UnsupportedContent(
                f"{called} has dtype {entry.dtype}, which PyTorch {torch.__version__} has not",
                advice=_NEWER_TORCH,
                path=path,
            )
        if entry.is_composite:
            return  # its parts are checked when they are made
        storage = entry.storage
        try:
            if reaches_past_its_storage(entry) or _overflows(entry):
                raise past_its_storage(entry, called)
            if storage.device != "meta" and storage.nbytes:
                check_place(storage, called, lambda: self._file(storage).nbytes)
        except FileProblem as problem:
            raise problem.in_file(path) from None

    def _has_unchecked_digest(self, entry: TensorEntry) -> bool:
        # Digests are of the bytes as they are stored.
        return entry.memory in self._unchecked and entry.storage.byteorder == sys.byteorder

    def _wants_digest(self, entry: TensorEntry) -> bool:
        is_unknown = self._remember and entry.memory not in self._known
        return is_unknown or self._has_unchecked_digest(entry)

    def _read_run(self, entry: TensorEntry, target: memoryview, name: str) -> None:
        """Read an entry that is a plain run, and compare it while it is in the cache."""
        start = _first_byte(entry)
        if not self._wants_digest(entry):
            self._file(entry.storage).read_into(start, target)
            return
        state = new_digest()
        for position in range(0, len(target), _COMPARED_NBYTES):
            chunk = target[position : position + _COMPARED_NBYTES]
            self._file(entry.storage).read_into(start + position, chunk)
            state.update(chunk)
        self._settle(entry, state.hexdigest(), name)

    def _compare(self, tensor: torch.Tensor, entry: TensorEntry, name: str) -> None:
        """Compare a tensor that was made from the file with its digest, unless that was done."""
        if self._wants_digest(entry) and tensor.device.type != "meta":
            self._settle(entry, digest(bytes_of(plain_on_cpu(tensor))), name)

    def _settle(self, entry: TensorEntry, found: str, name: str) -> None:
        wanted = self._unchecked.get(entry.memory) if self._has_unchecked_digest(entry) else None
        if wanted is not None and found not in wanted:
            raise differs_from_digest(name, entry.storage.path or self.path)
        self._known[entry.memory] = found
        self._unchecked.pop(entry.memory, None)  # another thread may have been here

    def _storage(self, entry: TensorEntry, name: str) -> torch.UntypedStorage:
        key = id(entry.storage)
        if key not in self._storages:
            storage = self._read_storage(entry, name)
            if not self.maps:
                self._compare(_view(storage, entry), entry, name)  # while it is on the CPU
            # The storage's description is kept as well, so that its id stays its own.
            self._storages[key] = entry.storage, self._to_device(storage)
        return self._storages[key][1]

    def _read_storage(self, entry: TensorEntry, name: str) -> torch.UntypedStorage:
        """Return the whole storage that the entry looks into, in this machine's byte order."""
        storage = entry.storage
        if storage.offset is None and storage.data is None and storage.deflated is None:
            return _empty_storage(storage.nbytes, storage.device)
        if self.maps and storage.nbytes and self._can_map(entry):
            # A slice of a storage is a storage of its own, so that saving the tensor again
            # saves its part of the file and not all of it.
            start = storage.offset or 0
            part: torch.UntypedStorage = self._map(storage)[start : start + storage.nbytes]
            return part
        target = _empty_storage(storage.nbytes)
        view = bytes_of(_storage_bytes(target))
        if storage.data is not None:
            view[:] = storage.data
        elif storage.deflated is not None:
            inflate_into(view, self._file(storage), storage)
        elif self._is_plain_run(entry) and entry.nbytes == storage.nbytes:
            self._read_run(entry, view, name)
        else:
            self._file(storage).read_into(storage.offset or 0, view)
        if storage.byteorder != sys.byteorder:
            target.byteswap(torch_dtype(entry.dtype))  # type: ignore[no-untyped-call]
        return target

    def _can_map(self, entry: TensorEntry) -> bool:
        # Processors differ in what they do with a number that isn't at a multiple of its size.
        offset = entry.storage.offset
        aligned = offset is not None and offset % ITEM_SIZE[entry.dtype] == 0
        return aligned and entry.storage.byteorder == sys.byteorder

    def _assembled(self, entry: TensorEntry, name: str) -> torch.Tensor:
        """Return a tensor that is no plain view of a storage."""
        try:
            made = self._put_together(entry, name).to(self.device)
        except FileProblem as problem:
            raise problem.in_file(entry.storage.path or self.path) from None
        if entry.is_parameter:
            return torch.nn.Parameter(made, requires_grad=entry.requires_grad)
        return made.requires_grad_(entry.requires_grad)

    def _put_together(self, entry: TensorEntry, name: str) -> torch.Tensor:
        if entry.chunks:
            return self._joined(entry, name)
        if entry.is_composite:
            return assemble(entry, name, self.materialize)
        return quantized(entry, name, self.read(numbers_of(entry), name), self.materialize)

    def _joined(self, entry: TensorEntry, name: str) -> torch.Tensor:
        """Return a tensor that is spread over the shards of a distributed checkpoint."""
        whole = torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
        for chunk in entry.chunks:
            try:
                piece = piece_of(chunk, entry.dtype)
            except DamagedFile as problem:
                text = f"a piece of tensor {name!r} can't be used: {problem.problem}"
                raise DamagedFile(text, path=chunk.path) from None
            box = tuple(
                slice(start, start + size)
                for start, size in zip(chunk.offsets, chunk.shape, strict=True)
            )
            read = self.read(piece, name)
            if chunk.digest and digest(bytes_of(plain_on_cpu(read))) != chunk.digest:
                raise differs_from_digest(f"{name} from {list(chunk.offsets)} on", chunk.path)
            whole[box] = read
        self._compare(whole, entry, name)
        return whole

    def _to_device(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if storage.device in (self.device, torch.device("meta")):
            return storage
        return _storage_bytes(storage).to(self.device).untyped_storage()

    def _is_plain_run(self, entry: TensorEntry) -> bool:
        return (
            entry.storage.offset is not None
            and not entry.is_composite
            and not entry.quantizer
            and entry.storage.byteorder == sys.byteorder
            and entry.is_contiguous
            and not (entry.is_conj or entry.is_neg)
        )

    def close(self) -> None:
        """Close the file. Tensors that were made stay valid, mapped ones too."""
        self._storages.clear()
        self._maps.clear()
        for file in self._files.values():
            file.close()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for file in self._files.values():
                if kind is None or issubclass(kind, FileProblem):
                    file.check_unchanged()
        finally:
            self.close()


def _check_named(file: InputFile) -> None:
    """Raise unless the file's name is still its own: to map a file is to open it by its name."""
    try:
        is_same = Stamp.of(file.path.stat()) == file.stamp
    except OSError:
        is_same = False
    if not is_same:
        raise changed(file.path)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes; a NaN equals itself here."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return _are_same_bytes(bytes_of(plain_on_cpu(one)), bytes_of(plain_on_cpu(other)))


def _are_same_bytes(one: memoryview, other: memoryview) -> bool:
    """Compare two writable views of one length, without Python's lock, so that threads can."""
    kind = ctypes.c_char * len(one)
    return not one or _memcmp(kind.from_buffer(one), kind.from_buffer(other), len(one)) == 0


_memcmp = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _empty_storage(nbytes: int, device: str = "cpu") -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8, device=device).untyped_storage()


def _view(storage: torch.UntypedStorage, entry: TensorEntry) -> torch.Tensor:
    """Return an entry's tensor on a storage of its own or one that it shares."""
    tensor = torch.empty(0, dtype=torch_dtype(entry.dtype), device=storage.device)
    tensor.set_(storage, entry.storage_offset, entry.shape, entry.stride)
    return _with_signs(tensor, entry)


def _storage_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _is_plain_run(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is its elements in C order, as a file has them."""
    return (
        tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _with_signs(tensor: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    """Return the tensor as the view that it was, if it was conjugated or negated lazily.

    PyTorch has no public name for a lazily negated view, so that one gets memory of its own.
    """
    tensor = tensor.conj() if entry.is_conj else tensor
    return tensor.neg() if entry.is_neg else tensor


def _count_change(tensor: torch.Tensor) -> None:
    """Tell autograd that the tensor was written to, as any in-place operation does."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _overflows(entry: TensorEntry) -> bool:
    """Whether PyTorch can't count its elements, which it does even for an empty tensor."""
    numel = prod(max(size, 1) for size in entry.shape)
    return max(numel * ITEM_SIZE[entry.dtype], entry.storage_offset, *entry.stride) >= 1 << 63


def _first_byte(entry: TensorEntry) -> int:
    """Return where in the file the entry's first element lies."""
    return (entry.storage.offset or 0) + entry.storage_offset * ITEM_SIZE[entry.dtype]
