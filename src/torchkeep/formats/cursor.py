"""Numbers and texts at places of a file, for the formats whose headers are made of them."""

from __future__ import annotations

import struct
from typing import Literal

from torchkeep.errors import DamagedFile
from torchkeep.files import Readable
from torchkeep.pickles.limits import Limits

ByteOrder = Literal["little", "big"]

_FIRST_CHUNK = 1 << 12
_LARGEST_CHUNK = 1 << 18
_LONGEST_VARINT = 10


class Cursor:
    """A place in a file, moved by what is read there; every length is checked before it is used.

    All that is taken counts against the limit `header_nbytes`; what is skipped is not read.

    Attributes:
        position: the offset of the next byte.
        end: where the part ends that may be read.
        byteorder: that of the numbers.
    """

    __slots__ = ("_window", "byteorder", "end", "position")

    def __init__(self, window: _Window, position: int, end: int, byteorder: ByteOrder) -> None:
        self._window = window
        self.position = position
        self.end = end
        self.byteorder: ByteOrder = byteorder

    @classmethod
    def over(cls, file: Readable, limits: Limits, *, byteorder: ByteOrder = "little") -> Cursor:
        """Return a cursor at the start of a file."""
        return cls(_Window(file, limits), 0, file.nbytes, byteorder)

    @property
    def remaining(self) -> int:
        """Bytes from the next one to the end."""
        return self.end - self.position

    def part(self, nbytes: int) -> Cursor:
        """Return a cursor over the next `nbytes` bytes, and step over them.

        Raises:
            DamagedFile: the part ends before that.
        """
        start = self.position
        self.skip(nbytes)
        return Cursor(self._window, start, self.position, self.byteorder)

    def at(self, position: int) -> Cursor:
        """Return a cursor at another place of the same part. Raises `DamagedFile` as `skip`."""
        other = Cursor(self._window, 0, self.end, self.byteorder)
        other.skip(position)
        return other

    def need(self, nbytes: int) -> None:
        """Raise `DamagedFile` unless `nbytes` more bytes are there."""
        if nbytes < 0 or nbytes > self.remaining:
            raise DamagedFile(
                f"the file is truncated or overwritten: {nbytes:,} bytes are needed at byte "
                f"{self.position:,}, and there are {max(self.remaining, 0):,}",
                advice="Copy or download it again.",
            )

    def skip(self, nbytes: int) -> None:
        """Step over `nbytes` bytes without reading them. Raises `DamagedFile` as `need` does."""
        self.need(nbytes)
        self.position += nbytes

    def take(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes.

        Raises:
            DamagedFile: the part ends before that.
            LimitReached: more than `header_nbytes` were taken from the file.
        """
        self.need(nbytes)
        self._window.charge(nbytes)
        data = self._window.read(self.position, nbytes)
        self.position += nbytes
        return data

    def text(self, nbytes: int, longest: int) -> str:
        """Return the next `nbytes` bytes as text, cut off after `longest`. Errors as in `take`."""
        piece = self.part(nbytes).take(min(nbytes, longest))
        text = piece.decode("utf-8", "replace")
        return text if nbytes <= longest else f"{text}..."

    def number(self, nbytes: int, *, signed: bool = False) -> int:
        """Return the next `nbytes` bytes as a whole number. Errors as in `take`."""
        return int.from_bytes(self.take(nbytes), self.byteorder, signed=signed)

    def real(self, nbytes: Literal[4, 8]) -> float:
        """Return the next bytes as a float or a double. Errors as in `take`."""
        code = ("<" if self.byteorder == "little" else ">") + ("f" if nbytes == 4 else "d")
        value: float = struct.unpack(code, self.take(nbytes))[0]
        return value

    def count(self, nbytes: int, item_nbytes: int) -> int:
        """Return the next number as a count of things that take at least `item_nbytes` each.

        Raises:
            DamagedFile: there is no room for so many, or as in `take`.
        """
        count = self.number(nbytes)
        self.need(count * item_nbytes)
        return count

    def skip_texts(self, count: int, width: int) -> None:
        """Step over `count` texts, each behind its length in `width` bytes. Errors as in `take`."""
        while count:
            data = self._window.read(self.position, min(self.remaining, _LARGEST_CHUNK))
            position, before = 0, count
            while count and position + width <= len(data):
                length = int.from_bytes(data[position : position + width], self.byteorder)
                position += width + length
                count -= 1
            self._window.charge((before - count) * width)
            self.skip(position or width)

    def word(self, longest: int) -> bytes:
        """Return the next bytes up to a blank or the end, blanks before them left out.

        Raises:
            DamagedFile: there is none, or it is longer than `longest`.
        """
        data = self._window.read(self.position, min(self.remaining, longest + 1))
        start = len(data) - len(data.lstrip())
        word = data.split(None, 1)[0] if start < len(data) else b""
        if not 0 < len(word) <= longest or (start and start + len(word) > longest):
            raise DamagedFile(f"no number stands at byte {self.position:,}")
        self._window.charge(start + len(word))
        self.position += start + len(word)
        return word

    def skip_words(self, count: int) -> None:
        """Step over `count` words and the blanks before them.

        Raises:
            DamagedFile: there are fewer.
        """
        while count:
            data = self._window.read(self.position, min(self.remaining, _LARGEST_CHUNK))
            self._window.charge(len(data))
            if self.remaining > len(data):  # the last word may go on
                data = data[: max(data.rfind(b" "), data.rfind(b"\n")) + 1]
            words = data.split(None, count)
            if not words:
                raise DamagedFile(f"numbers are missing at byte {self.position:,}")
            if len(words) > count:
                data = data[: len(data) - len(words.pop())]
            count -= len(words)
            self.position += len(data)

    def varint(self) -> int:
        """Return the next number in protobuf's notation: seven bits a byte, the lowest first.

        Raises:
            DamagedFile: it has more than 64 bits, or as in `take`.
        """
        value = shift = 0
        for byte in self._window.read(self.position, min(_LONGEST_VARINT, self.remaining)):
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                self._window.charge(shift // 7)
                self.position += shift // 7
                return value & 0xFFFF_FFFF_FFFF_FFFF
        self.need(_LONGEST_VARINT)
        raise DamagedFile(f"the number at byte {self.position:,} has more than 64 bits")


class _Window:
    """The part of a file that was read last, and a count of all that was read."""

    __slots__ = ("_buffer", "_chunk", "_file", "_limits", "_start", "_taken")

    def __init__(self, file: Readable, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._buffer = b""
        self._start = 0  # where the buffer starts in the file
        self._chunk = _FIRST_CHUNK
        self._taken = 0

    def charge(self, nbytes: int) -> None:
        self._taken += nbytes
        self._limits.check("header_nbytes", self._taken)

    def read(self, offset: int, nbytes: int) -> bytes:
        start = offset - self._start
        if start < 0 or start + nbytes > len(self._buffer):
            self._fill(offset, nbytes)
            start = 0
        return self._buffer[start : start + nbytes]

    def _fill(self, offset: int, nbytes: int) -> None:
        """Have at least `nbytes` bytes in the buffer; more where reads follow each other."""
        behind = offset - self._start - len(self._buffer)
        follows = -_LONGEST_VARINT <= behind <= _FIRST_CHUNK
        self._chunk = min(self._chunk * 2, _LARGEST_CHUNK) if follows else _FIRST_CHUNK
        available = self._file.nbytes - offset
        self._buffer = self._file.read_at(offset, max(nbytes, min(self._chunk, available)))
        self._start = offset
