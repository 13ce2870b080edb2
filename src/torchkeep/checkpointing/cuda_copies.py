"""Tensors of CUDA devices, copied to the CPU beside what the program computes.

Each device gets a stream of its own for this, and pinned memory that is used again: only into
pinned memory does a copy go on while the CPU does something else. The host never waits; the
devices' own queues do, where they must:

    copies       wait for all that the program has queued so far
    the program  waits for the copies of what may move in its next forward pass
    a step       waits for the others
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_ALIGNMENT = 64


class CudaCopies:
    """The copies of one snapshot at a time, in memory that the next one uses again."""

    def __init__(self) -> None:
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._done: dict[torch.device, torch.cuda.Event] = {}

    def begin(
        self, moving: Iterable[torch.Tensor], steady: Iterable[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Queue copies of all, those that may move first; return them in this order.

        They are good after `wait`, and until `begin` is called again. The originals must be kept
        until then.
        """
        early, late = list(moving), list(steady)
        copies = self._places([*early, *late])
        pairs = list(zip([*early, *late], copies, strict=True))
        self._done = {}
        for device in {tensor.device for tensor in (*early, *late)}:
            stream = self._streams.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
            current = torch.cuda.current_stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                _copy(pairs[: len(early)], device)
                current.wait_event(stream.record_event())
                _copy(pairs[len(early) :], device)
                self._done[device] = stream.record_event()
        return copies

    def let_go(self) -> None:
        """Have what the program queues from now on wait for the copies; the host does not."""
        for device, event in self._done.items():
            torch.cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Return when all is copied."""
        for event in self._done.values():
            event.synchronize()

    def _places(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return pinned memory for each tensor, with its sizes and strides."""
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        if end > self._pinned.numel():
            self._pinned = torch.empty(0, dtype=torch.uint8)  # give the old ones back first
            self._pinned = torch.empty(end, dtype=torch.uint8, pin_memory=True)
        return [
            _placed(self._pinned, start, tensor)
            for start, tensor in zip(starts, tensors, strict=True)
        ]


def _placed(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    run = memory[start : start + like.numel() * like.element_size()]
    return torch.as_strided(run.view(like.dtype), like.shape, like.stride())


def _copy(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> None:
    with torch.no_grad():
        for tensor, copy in pairs:
            if tensor.device == device:
                copy.copy_(tensor.detach(), non_blocking=True)
