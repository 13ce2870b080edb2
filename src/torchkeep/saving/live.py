"""Live tensors as writers take them: descriptions, and payloads that are their memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch

from torchkeep.contents import Storage, TensorEntry
from torchkeep.files import Buffer
from torchkeep.saving.leaves import check_tensor
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu
from torchkeep.writing.payload import Payload

_COPIED_NBYTES = 1 << 16
"""Up to here a copy of the bytes costs less than a view of them that keeps the tensor alive."""


def payload_of_elements(tensor: torch.Tensor) -> Payload:
    """Return the elements of a dense tensor in C order.

    They are copied when they are read, if at all, so that a writer has few copies at a time.
    """
    nbytes = tensor.numel() * tensor.element_size()

    def read(begin: int, end: int) -> Iterable[Buffer]:
        return (_memory(plain_on_cpu(tensor), begin, end),)

    return Payload(nbytes, read)


def _memory(tensor: torch.Tensor, begin: int, end: int) -> Buffer:
    """Return bytes `begin` to `end` of a contiguous tensor on the CPU."""
    if end - begin <= _COPIED_NBYTES:
        return ctypes.string_at(tensor.data_ptr() + begin, end - begin)
    return bytes_of(tensor)[begin:end]


class LiveTensors:
    """Describes tensors as they stand in memory, those that share memory with one storage."""

    def __init__(self) -> None:
        self._entries: dict[int, TensorEntry] = {}
        self._storages: dict[tuple[object, ...], Storage] = {}
        self._samples: dict[int, torch.Tensor] = {}

    def entry(self, tensor: torch.Tensor, name: str) -> TensorEntry:
        """Return the description of a tensor: the same one for the same tensor object.

        Args:
            tensor: a tensor of any layout; it must stay alive.
            name: what to call it in an error.

        Raises:
            SaveRefused: it has no values, or is of a class that keeps them elsewhere.
        """
        known = self._entries.get(id(tensor))
        if known is None:
            known = self._entries[id(tensor)] = self._described(tensor, name)
        return known

    def payload_of(self, storage: Storage) -> Payload:
        """Return the bytes of a storage that was described; copied only from another device."""
        sample = self._samples[id(storage)]

        def read(begin: int, end: int) -> Iterable[Buffer]:
            memory = sample.untyped_storage()
            if memory.device.type == "cpu" and end - begin <= _COPIED_NBYTES:
                return (ctypes.string_at(memory.data_ptr() + begin, end - begin),)
            run = torch.empty(0, dtype=torch.uint8, device=memory.device)
            run.set_(memory, begin, (end - begin,), (1,))
            return (bytes_of(run.cpu()),)

        return Payload(storage.nbytes, read)

    def _described(self, tensor: torch.Tensor, name: str) -> TensorEntry:
        check_tensor(tensor, name)
        if tensor.is_conj() or tensor.is_neg():
            # Its sign is in a flag that old readers of the file don't know; a copy has it in its
            # bytes.
            tensor = (
                tensor.detach().resolve_conj().resolve_neg().requires_grad_(tensor.requires_grad)
            )
        return TensorEntry(
            dtype_name(tensor.dtype),
            tuple(tensor.shape),
            tensor.stride(),
            self._storage(tensor),
            int(tensor.storage_offset()),
            tensor.requires_grad,
            isinstance(tensor, torch.nn.Parameter),
        )

    def _storage(self, tensor: torch.Tensor) -> Storage:
        memory = tensor.untyped_storage()
        # What is empty shares nothing, and has no address to tell it by.
        place = (tensor.device, memory.data_ptr()) if tensor.numel() else (id(tensor),)
        known = self._storages.get(place)
        if known is None:
            known = self._storages[place] = Storage("", memory.nbytes(), None, str(tensor.device))
            self._samples[id(known)] = tensor
        return known
