"""What a writer needs of bytes that are still somewhere else: in a tensor's memory, in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torchkeep.files import CHUNK_NBYTES, Buffer, Readable


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes that are to be written, had when their turn comes."""

    nbytes: int
    """How many they are."""
    read: Callable[[int, int], Iterable[Buffer]]
    """Yields those from the first number on to the second, in pieces as they come. Memory stays
    near one piece, so what lies in a file comes in chunks."""
    address: int | None = None
    """Where they lie in memory, if they are there in one run; who reads them keeps them there."""

    def joined(self, begin: int, end: int) -> Buffer:
        """Return the bytes from `begin` to `end` in one run, copied if they come in pieces.

        Raises:
            ValueError: others come than were announced.
        """
        pieces = list(self.read(begin, end))
        run = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        check_nbytes(len(run), end - begin)
        return run

    def part(self, begin: int, end: int) -> Payload:
        """Return the payload of the bytes from `begin` to `end`."""
        if (begin, end) == (0, self.nbytes):
            return self
        return Payload(end - begin, lambda first, last: self.read(begin + first, begin + last))


def check_nbytes(found: int, expected: int) -> None:
    """Raise unless a payload gave what it announced: what follows it would be out of its place.

    Raises:
        ValueError: it did not.
    """
    if found != expected:
        raise ValueError(f"{found} bytes came, and {expected} were announced")


def of_bytes(data: Buffer) -> Payload:
    """Return the payload of bytes in memory."""
    view = memoryview(data).cast("B")
    return Payload(len(view), lambda begin, end: (view[begin:end],))


def of_file(file: Readable, offset: int, nbytes: int) -> Payload:
    """Return the payload of a part of an open file, which must stay open. It comes in chunks.

    Reading it raises `DamagedFile` where the file ends before it.
    """

    def read(begin: int, end: int) -> Iterator[bytes]:
        for position in range(begin, end, CHUNK_NBYTES):
            yield file.read_at(offset + position, min(CHUNK_NBYTES, end - position))

    return Payload(nbytes, read)
