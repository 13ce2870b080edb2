"""A few elements of each of many tensors, to tell later whether a copy is what the tensor was.

PyTorch counts the changes of a tensor, but not those through `.data`, nor those of a CUDA graph
that is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from torchkeep.files import memory_at

_NUM_ELEMENTS = 64
"""How many are taken of a tensor on a device."""

_NUM_WORDS = 16
"""How many are taken here, where each is waited for: it comes from memory, and not from a cache."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Types by element size, to compare bits: a NaN is not equal to itself."""

_KNOWN_TO_ALL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types that every operation knows."""


class Samples:
    """Elements of tensors as they are now; on a device, now in its queue.

    Args:
        tensors: dense ones, on any devices.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for number, tensor in enumerate(tensors):
            if tensor.numel() and tensor.element_size() in _BITS:
                groups.setdefault((tensor.device, tensor.dtype), []).append(number)
        self._numbers = list(groups.values())
        self._taken = [
            torch.cat(_samples([tensors[number] for number in some])) for some in self._numbers
        ]
        # Kept, since devices may have them still on their way when they are fetched.
        self._on_devices = self._taken

    def fetch(self, device: torch.device) -> None:
        """Queue those of a device on their way to the CPU, in the stream that is the current one.

        The stream has to wait for the one that was current when they were taken.
        """
        self._taken = [
            taken.to("cpu", non_blocking=True) if taken.device == device else taken
            for taken in self._taken
        ]

    def differing(self, copies: Sequence[torch.Tensor]) -> Iterator[int]:
        """Yield which of the copies, on the CPU and in the tensors' order, have other elements."""
        for numbers, taken in zip(self._numbers, self._taken, strict=True):
            found = _samples([copies[number] for number in numbers])
            if _are_same(taken, torch.cat(found)):
                continue
            parts = torch.split(taken, [len(sample) for sample in found])
            for number, before, now in zip(numbers, parts, found, strict=True):
                if not _are_same(before, now.contiguous()):
                    yield number


def sample_at(address: int, nbytes: int) -> bytes:
    """Return words from all over a run of at least 8 bytes of memory, the last one among them."""
    count = nbytes // 8
    words = memory_at(address + nbytes - 8 * count, 8 * count).cast("Q")
    step = max(count // _NUM_WORDS, 1)
    return words[(count - 1) % step :: step].tobytes()


def _samples(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return elements from all over each of some tensors of one dtype.

    The last one is among them: a tensor is copied from its first byte on, so one that changes
    meanwhile shows at its end.
    """
    bits = None if tensors[0].dtype in _KNOWN_TO_ALL else _BITS[tensors[0].element_size()]
    samples = []
    for tensor in tensors:
        last = tensor.numel() - 1
        step = max(last // (_NUM_ELEMENTS - 1), 1)
        count = min(last // step + 1, _NUM_ELEMENTS)
        first = last - (count - 1) * step
        sample = tensor.as_strided((count,), (step,), tensor.storage_offset() + first)
        samples.append(sample if bits is None else sample.view(bits))
    return samples


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = _BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))
