"""Tensors of CUDA devices, copied to the CPU beside what the program computes.

Each device gets a stream of its own for this, and pinned memory that is used again: only into
pinned memory does a copy go on while the CPU does something else. The host never waits; the
devices' own queues do, where they must:

    copies       wait for all that the program has queued so far
    the program  waits for the copies of what may move in its next forward pass
    a step       waits for the others

Nobody tells of a step that a CUDA graph replays, or of a change through `.data`. So a few elements
of each tensor that is copied later are taken at once, in the program's own queue, and compared with
the copy: what was changed before it was copied shows there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch

from torchkeep.checkpointing.background.samples import Samples

_ALIGNMENT = 64


class CudaCopies:
    """The copies of one snapshot at a time, in memory that the next one uses again."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._done: dict[torch.device, torch.cuda.Event] = {}
        self._samples = Samples([])

    @property
    def nbytes(self) -> int:
        """How much memory there is for copies."""
        return self._memory.nbytes

    def begin(
        self, moving: Iterable[torch.Tensor], steady: Iterable[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Queue copies of all, those that may move first; return them in this order.

        They are good after `wait`, and until `begin` is called again. The originals must be kept
        until then.
        """
        early, late = list(moving), list(steady)
        copies = self._places([*early, *late])
        to_early, to_late = copies[: len(early)], copies[len(early) :]
        self._done = {}
        with torch.no_grad():
            self._samples = Samples(late)
        for device in {tensor.device for tensor in chain(early, late)}:
            stream = self._streams.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
            current = torch.cuda.current_stream(device)
            with torch.no_grad(), torch.cuda.device(device):
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    self._samples.fetch(device)
                    if _copy(early, to_early, device):
                        current.wait_event(stream.record_event())
                    _copy(late, to_late, device)
                    self._done[device] = stream.record_event()
        return copies

    def let_go(self) -> None:
        """Have what the program queues from now on wait for the copies; the host does not."""
        for device, event in self._done.items():
            with torch.cuda.device(device):
                # To capture a step changes nothing; to replay it shows in the samples.
                if not torch.cuda.is_current_stream_capturing():
                    torch.cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Return when all is copied."""
        for event in self._done.values():
            event.synchronize()

    def differ(self, copies: Sequence[torch.Tensor]) -> bool:
        """Whether one of the steady tensors was changed before it was copied. `wait` comes first.

        Args:
            copies: theirs, in the order in which they were given.
        """
        return any(True for _ in self._samples.differing(copies))

    def _places(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return memory for each tensor, with its sizes and strides; pinned if there is enough."""
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > self.nbytes:
            self._memory = torch.empty(0, dtype=torch.uint8)  # give the old ones back first
            self._memory = _pinned(end)
        views = {dtype: self._memory.view(dtype) for dtype in {item.dtype for item in tensors}}
        return [
            views[item.dtype].as_strided(item.shape, item.stride(), start // item.element_size())
            for start, item in zip(starts, tensors, strict=True)
        ]


def nbytes_on_device(tensors: Iterable[torch.Tensor]) -> int:
    """Return how much memory copies of these tensors take.

    PyTorch pins powers of two.
    """
    nbytes = sum(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors)
    return 1 << (nbytes - 1).bit_length() if nbytes else 0


def _pinned(nbytes: int) -> torch.Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # the system allows no more of it: then the host waits for the copies
        pass
    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError as error:
        raise MemoryError(str(error)) from error


def _copy(
    sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], device: torch.device
) -> bool:
    """Copy those of a device; return whether there were any."""
    numbers = [number for number, source in enumerate(sources) if source.device == device]
    if numbers:
        torch._foreach_copy_(
            [targets[number] for number in numbers],
            [sources[number] for number in numbers],
            non_blocking=True,
        )
    return bool(numbers)
