"""Payloads on their way into a file: each byte is hashed as it passes, and counted."""

from __future__ import annotations

import threading

from torchkeep.files import Observer, OutputFile, Progress
from torchkeep.writing.payload import Payload, check_nbytes


class Meter:
    """Counts the bytes of a save that are written, and tells whoever wants to know.

    Args:
        progress: is called with the bytes so far and of all, never by two threads at once.
        total: how many there will be.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        """Count bytes that are about to be written."""
        if self._progress is not None:
            with self._lock:
                self._done += nbytes
                self._progress(self._done, self._total)


def write_payload(
    file: OutputFile,
    offset: int,
    payload: Payload,
    meter: Meter,
    observe: Observer,
) -> None:
    """Write all bytes of a payload at an offset.

    Args:
        file: where to.
        offset: where in it.
        payload: the bytes.
        meter: is told of each chunk.
        observe: is given each chunk just before it is written.
    """

    def count_and_observe(chunk: memoryview) -> None:
        meter.add(len(chunk))
        observe(chunk)

    position = offset
    for piece in payload.read(0, payload.nbytes):
        file.write_at(position, piece, observe=count_and_observe)
        position += len(piece)
    check_nbytes(position - offset, payload.nbytes)
