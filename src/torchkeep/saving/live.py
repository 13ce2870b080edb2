"""Live tensors as writers take them: descriptions, and payloads that are their memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from torchkeep.contents import Storage, TensorEntry
from torchkeep.files import Buffer
from torchkeep.saving.leaves import check_has_values
from torchkeep.tensors import bytes_of, dtype_name, plain_on_cpu
from torchkeep.writing.payload import Payload

_COPIED_NBYTES = 1 << 16
"""Up to here a copy of the bytes costs less than a view of them that keeps the tensor alive."""


def payload_of_elements(tensor: torch.Tensor) -> Payload:
    """Return the elements of a dense tensor in C order.

    They are copied when they are read, if at all, so that a writer has few copies at a time.
    """
    tensor = tensor.detach()  # holds the memory, wherever the program puts the tensor's `.data`
    nbytes = tensor.nbytes
    is_run = nbytes > 0 and tensor.is_cpu and tensor.is_contiguous()
    is_run = is_run and not (tensor.is_conj() or tensor.is_neg())

    def read(begin: int, end: int) -> Iterable[Buffer]:
        return (_memory(plain_on_cpu(tensor), begin, end),)

    return Payload(nbytes, read, tensor.data_ptr() if is_run else None)


def _memory(tensor: torch.Tensor, begin: int, end: int) -> Buffer:
    """Return bytes `begin` to `end` of a contiguous tensor on the CPU."""
    if end - begin <= _COPIED_NBYTES:
        return ctypes.string_at(tensor.data_ptr() + begin, end - begin)
    return bytes_of(tensor)[begin:end]


_COMPRESSED_ROWS = (
    ("crow_indices", "crow_indices"),
    ("col_indices", "col_indices"),
    ("values", "values"),
)
_COMPRESSED_COLUMNS = (
    ("ccol_indices", "ccol_indices"),
    ("row_indices", "row_indices"),
    ("values", "values"),
)
_PARTS = {
    # A tensor that is not coalesced has no public way to its indices.
    "sparse_coo": (("indices", "_indices"), ("values", "_values")),
    "sparse_csr": _COMPRESSED_ROWS,
    "sparse_bsr": _COMPRESSED_ROWS,
    "sparse_csc": _COMPRESSED_COLUMNS,
    "sparse_bsc": _COMPRESSED_COLUMNS,
    "nested": (
        ("values", "values"),
        ("sizes", "_nested_tensor_size"),
        ("strides", "_nested_tensor_strides"),
        ("offsets", "_nested_tensor_storage_offsets"),
    ),
}
"""What a tensor of each layout is made of, and the methods that tell it (torch/_tensor.py)."""


class LiveTensors:
    """Describes tensors as they stand in memory, those that share memory with one storage.

    Args:
        device: what to call the device of all tensors; None for the one that each is on.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._entries: dict[int, TensorEntry] = {}
        self._storages: dict[tuple[object, ...], Storage] = {}
        self._samples: dict[int, torch.Tensor] = {}
        self._views: dict[int, torch.Tensor] = {}

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

    def elements_of(self, entry: TensorEntry, storage: Payload) -> Payload:
        """Return the elements of a tensor that was described, without its storage's help."""
        del storage
        return payload_of_elements(self._views[id(entry)])

    def _described(self, tensor: torch.Tensor, name: str) -> TensorEntry:
        check_has_values(tensor, name)
        if tensor.layout != torch.strided or tensor.is_nested:
            return self._composite(tensor)
        if tensor.is_conj() or tensor.is_neg():
            # Its sign is in a flag that no file of 1.x has; a copy has it in its bytes.
            resolved = tensor.detach().resolve_conj().resolve_neg()
            tensor = resolved.requires_grad_(tensor.requires_grad)
        entry = TensorEntry(
            dtype_name(tensor.dtype),
            tuple(tensor.shape),
            tensor.stride(),
            self._storage(tensor),
            int(tensor.storage_offset()),
            tensor.requires_grad,
            isinstance(tensor, torch.nn.Parameter),
        )
        if tensor.is_quantized:
            entry = self._quantized(tensor, entry)
        self._views[id(entry)] = tensor
        return entry

    def _composite(self, tensor: torch.Tensor) -> TensorEntry:
        """Return the description of a sparse or nested tensor: of the tensors it is made of."""
        plain = tensor.detach()
        is_nested = tensor.is_nested
        layout = "nested" if is_nested else str(tensor.layout).removeprefix("torch.")
        return TensorEntry(
            dtype_name(tensor.dtype),
            (tensor.size(0),) if is_nested else tuple(tensor.shape),
            (),
            Storage("", 0, None, self._device or str(tensor.device)),
            requires_grad=tensor.requires_grad,
            is_parameter=isinstance(tensor, torch.nn.Parameter),
            layout=layout,
            parts=self._parts({name: getattr(plain, how)() for name, how in _PARTS[layout]}),
            is_coalesced=tensor.is_coalesced() if layout == "sparse_coo" else None,
        )

    def _quantized(self, tensor: torch.Tensor, entry: TensorEntry) -> TensorEntry:
        if tensor.qscheme() == torch.per_tensor_affine:
            scale = (tensor.q_scale(), tensor.q_zero_point())
            return replace(entry, quantizer=("per_tensor_affine", *scale))
        parts = {
            "scales": tensor.q_per_channel_scales(),
            "zero_points": tensor.q_per_channel_zero_points(),
        }
        # `torch.save` calls the scheme so even where the zero points are no integers.
        quantizer = ("per_channel_affine", tensor.q_per_channel_axis())
        return replace(entry, quantizer=quantizer, parts=self._parts(parts))

    def _parts(self, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, TensorEntry], ...]:
        return tuple((name, self._described(part, name)) for name, part in tensors.items())

    def _storage(self, tensor: torch.Tensor) -> Storage:
        memory = tensor.untyped_storage()
        # What is empty shares nothing, and has no address to tell it by.
        place = (tensor.device, memory.data_ptr()) if tensor.numel() else (id(tensor),)
        known = self._storages.get(place)
        if known is None:
            device = self._device or str(tensor.device)
            known = self._storages[place] = Storage("", memory.nbytes(), None, device)
            self._samples[id(known)] = tensor
        return known
