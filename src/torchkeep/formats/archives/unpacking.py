"""Packed bytes, unpacked as streams that can't run away.

A stream is read forward; `read` returns fewer bytes than asked for only where it ends. What a
file on disk may have unpacked is one `Budget` for all the archives inside of it, however deep they
lie: an archive in an archive in an archive has no more than the outermost one.

Limits: gzip, bzip2, xz, lzma, zlib and raw deflate are those of Python's standard library, which
checks the checksums of gzip, bzip2 and xz; a lone `.lzma` file has none.

Source: RFC 1950 to 1952, the xz file format 1.2.1, and the documentation of zlib, bz2 and lzma.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.files import Readable, Stream
from torchkeep.pickles.limits import Limits, how_to_raise

CHUNK_NBYTES = 1 << 20
"""The most that is unpacked in one go."""
XZ_MEMORY_NBYTES = 256 << 20
"""What an xz or lzma file may ask for; `xz -9` takes 65 MiB."""

_UNPACK_HINT = "If you trust the file, unpack it yourself and look into what comes out."


class Budget:
    """What is left of the work that one file on disk may cause.

    Attributes:
        unpacked: bytes that may still be unpacked: they cost little.
        read: bytes of them that may still be looked at: pickles take a thousand times as long.
    """

    def __init__(self, nbytes: int, limits: Limits) -> None:
        self._limits = limits
        self._unpacked_so_far = 0
        self.unpacked = _FREE_UNPACKED + limits.expansion * nbytes
        self.read = _FREE_READ + limits.expansion * nbytes
        self._spare = _FREE_SPARE

    def unpack(self, nbytes: int) -> None:
        """Count unpacked bytes; `LimitReached` if they are too many."""
        self.unpacked -= nbytes
        self._unpacked_so_far += nbytes
        if self.unpacked < 0:
            most = self._limits.expansion
            problem = f"it unpacks to more than the limit expansion={most} times the file's size"
            raise LimitReached(problem, advice=how_to_raise("expansion"))
        self._limits.check("pickle_nbytes", self._unpacked_so_far)

    def look(self, nbytes: int) -> None:
        """Count unpacked bytes that are looked at; `LimitReached` if they are too many."""
        self.read -= nbytes
        if self.read < 0:
            most = self._limits.expansion
            problem = "there is far more to read in it, once unpacked, than its size explains"
            text = f"{problem} (the limit expansion={most})"
            raise LimitReached(text, advice=how_to_raise("expansion"))

    def visit(self) -> None:
        """Count one file of an archive: to sort it takes time, too."""
        self.look(_VISIT_NBYTES)

    def spare(self) -> int:
        """Return the bytes that a zip inside may unpack a pickle to, beyond its own size.

        Each gets half of what the one before got: a zip full of small zips has no more in all.
        """
        self._spare //= 2
        return self._spare


_FREE_UNPACKED = 16 << 20
_FREE_READ = 256 << 10
_FREE_SPARE = 1 << 20
_VISIT_NBYTES = 1 << 9


class PartStream:
    """A stream over a part of something readable.

    Attributes:
        position: the offset of the next byte, from the start of the whole.
    """

    def __init__(self, file: Readable, start: int = 0, nbytes: int | None = None) -> None:
        self._file = file
        self._end = file.nbytes if nbytes is None else start + nbytes
        self.position = start

    def read(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes, or fewer where the part ends."""
        data = self._file.read_at(self.position, max(0, min(nbytes, self._end - self.position)))
        self.position += len(data)
        return data

    def copy(self) -> PartStream:
        """Return another stream that goes on from here."""
        return PartStream(self._file, self.position, self._end - self.position)

    def skip_to(self, position: int) -> None:
        """Go on at a later offset; `DamagedFile` if it lies behind the end."""
        if position > self._end:
            raise _cut_off()
        self.position = position


class Decompressor(Protocol):
    """What bz2 and lzma offer, and zlib with a little help."""

    @property
    def eof(self) -> bool:
        """Whether the packed stream is at its end."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether there is nothing to return without more packed bytes."""
        ...

    @property
    def unused_data(self) -> bytes:
        """The bytes that were given and lie behind the end."""
        ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return up to `max_length` more bytes, having taken `data`."""
        ...


class _Zlib:
    """A zlib decompressor that keeps what it could not use yet, as those of bz2 and lzma do."""

    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max(0, max_length))
        # With all input taken, a full piece may still have more behind it.
        self.needs_input = not self._zlib.unconsumed_tail and len(piece) < max_length
        return piece


def inflate() -> Decompressor:
    """Return a decompressor of raw deflate, as zip and 7z have it."""
    return _Zlib(-zlib.MAX_WBITS)


def gunzip() -> Decompressor:
    """Return a decompressor of one gzip member."""
    return _Zlib(16 + zlib.MAX_WBITS)


def zlib_inflate() -> Decompressor:
    """Return a decompressor of a zlib stream."""
    return _Zlib(zlib.MAX_WBITS)


def bunzip() -> Decompressor:
    """Return a decompressor of one bzip2 stream."""
    return bz2.BZ2Decompressor()


def unxz() -> Decompressor:
    """Return a decompressor of one xz or lzma stream."""
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=XZ_MEMORY_NBYTES)


class Unpacked:
    """The stream that comes out of a packed one.

    Attributes:
        position: bytes read so far.
        leftover: the first of the bytes behind the packed ones, once their end was met.
    """

    def __init__(
        self,
        packed: Stream,
        start: Callable[[], Decompressor],
        budget: Budget,
        *,
        again: bytes = b"",
    ) -> None:
        """Unpack `packed` with what `start` returns.

        Args:
            packed: the packed bytes.
            start: returns a fresh decompressor.
            budget: what the unpacked bytes are counted against.
            again: how another packed stream starts that may follow the first one.
        """
        self._packed = packed
        self._start = start
        self._budget = budget
        self._again = again
        self._decompressor = start()
        self._input = b""
        self.position = 0
        self.leftover = b""

    @property
    def finished(self) -> bool:
        """Whether the packed stream said that it is at its end, rather than just stopped."""
        return self._decompressor.eof

    def read(self, nbytes: int) -> bytes:
        """Return the next `nbytes` bytes, or fewer where the stream ends.

        Raises:
            DamagedFile: the packed bytes make no sense.
            LimitReached: the budget is used up.
        """
        pieces = []
        missing = nbytes
        while missing:
            piece = self._some(min(missing, CHUNK_NBYTES))
            if not piece:
                break
            self._budget.unpack(len(piece))
            self.position += len(piece)
            missing -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def skip_to(self, position: int) -> None:
        """Go on at a later offset; `DamagedFile` if it lies behind the end."""
        while self.position < position:
            if not self.read(min(position - self.position, CHUNK_NBYTES)):
                raise _cut_off()

    def _some(self, most: int) -> bytes:
        """Return between 1 and `most` bytes, or none at the end."""
        while True:
            if self._decompressor.eof and not self._go_on():
                return b""
            data = self._take_input() if self._decompressor.needs_input else b""
            if not data and self._decompressor.needs_input:
                return b""
            piece = self._decompress(data, most)
            if piece:
                return piece

    def _decompress(self, data: bytes, most: int) -> bytes:
        try:
            return self._decompressor.decompress(data, most)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            raise DamagedFile(f"the packed bytes can't be unpacked ({error})") from None
        except MemoryError:
            raise LimitReached("unpacking it takes too much memory", advice=_UNPACK_HINT) from None

    def _take_input(self) -> bytes:
        data, self._input = self._input, b""
        return data or self._packed.read(_INPUT_NBYTES)

    def _go_on(self) -> bool:
        """Start on the next packed stream, if there may be several and one follows."""
        if self.leftover:
            return False
        rest = self._decompressor.unused_data or self._packed.read(_INPUT_NBYTES)
        if len(rest) < len(self._again):
            rest += self._packed.read(_INPUT_NBYTES)
        if not self._again or not rest.startswith(self._again):
            self.leftover = rest
            return False
        self._decompressor, self._input = self._start(), rest
        return True


_INPUT_NBYTES = 1 << 16


def _cut_off() -> DamagedFile:
    return DamagedFile("the archive is truncated", advice="Copy or download the file again.")
