"""A window of bytes that is read forward in chunks.

A pickle in an old PyTorch file starts somewhere, ends at its STOP, and is followed by gigabytes
of tensors. Reading ahead in small, growing chunks costs what the pickle costs.
"""

from __future__ import annotations

from collections.abc import Callable

from torchkeep.errors import DamagedFile
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

_FIRST_CHUNK = 1 << 14
_LARGEST_CHUNK = 1 << 20


class ByteSource:
    """Bytes `start` to `end` of something that can be read at offsets.

    Attributes:
        end: where the window ends.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], start: int, end: int) -> None:
        self._read_at = read_at
        self._base = start  # where the buffer starts, in the source's own offsets
        self._buffer = b""
        self._next = 0
        self._chunk = _FIRST_CHUNK
        self._limits = DEFAULT_LIMITS
        self._allowed_from = start
        self.end = end

    @classmethod
    def of_bytes(cls, data: bytes) -> ByteSource:
        """Return a source over `data`."""
        return cls(lambda offset, nbytes: data[offset : offset + nbytes], 0, len(data))

    @property
    def position(self) -> int:
        """The offset of the next byte."""
        return self._base + self._next

    @property
    def remaining(self) -> int:
        """Bytes from the next one to the end of the window."""
        return self.end - self.position

    def allow(self, limits: Limits) -> None:
        """Bound what may be taken from here on by `limits.pickle_nbytes`."""
        self._limits = limits
        self._allowed_from = self.position

    def byte(self) -> int:
        """Return the next byte as a number. Errors as in `take`."""
        try:
            value = self._buffer[self._next]
        except IndexError:
            self._fill(1)
            value = self._buffer[self._next]
        self._next += 1
        return value

    def take(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes.

        Raises:
            DamagedFile: the window ends before that.
            LimitReached: it is more than `allow` allows.
        """
        stop = self._next + nbytes
        if stop > len(self._buffer):
            self._fill(nbytes)
            stop = self._next + nbytes
        piece = self._buffer[self._next : stop]
        self._next = stop
        return piece

    def skip(self, nbytes: int) -> None:
        """Step over `nbytes` bytes without reading them.

        Raises:
            DamagedFile: the window ends before that.
        """
        if nbytes > self.remaining:
            raise self._ended()
        target = self.position + nbytes
        self._allowed_from += nbytes  # what is not read costs nothing
        if self._next + nbytes <= len(self._buffer):
            self._next += nbytes
        else:
            self._buffer, self._base, self._next = b"", target, 0

    def line(self) -> bytes:
        """Return the bytes up to the next newline, and step over it.

        Raises:
            DamagedFile: there is no newline in the window.
            LimitReached: it is more than `allow` allows.
        """
        searched = self._next
        while (found := self._buffer.find(b"\n", searched)) < 0:
            have = len(self._buffer) - self._next
            if have >= self.remaining:
                raise self._ended()
            self._fill(min(2 * have + 1, self.remaining))
            searched = self._next + have
        piece = self._buffer[self._next : found]
        self._next = found + 1
        return piece

    def _fill(self, nbytes: int) -> None:
        """Have at least `nbytes` unread bytes in the buffer."""
        if nbytes > self.remaining:
            raise self._ended()
        position = self.position
        # A length in a damaged pickle may well be that of a file of a hundred gigabytes.
        self._limits.check("pickle_nbytes", position + nbytes - self._allowed_from)
        kept = self._buffer[self._next :]
        wanted = min(max(nbytes, self._chunk), self.remaining)
        self._chunk = min(self._chunk * 2, _LARGEST_CHUNK)
        fresh = self._read_at(position + len(kept), wanted - len(kept))
        self._buffer, self._base, self._next = kept + fresh, position, 0

    def _ended(self) -> DamagedFile:
        return DamagedFile(
            f"the pickle is truncated at byte {self.end}", advice="Copy or download the file again."
        )
