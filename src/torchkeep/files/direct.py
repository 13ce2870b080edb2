"""Bytes that go to the disk, or come from it, past the system's cache.

The cache costs processor time: each page of it has to be found, filled and emptied again, and that
by whoever else wants to compute. What is written beside a training goes past it (O_DIRECT): the
disk takes the bytes from where they lie, and the pages of the training's data set stay where they
are. What is read so is what the disk has, not what the system remembers of it.

The disk wants whole blocks, from aligned memory. Where it can't be had so (another system, a file
system that refuses), everything goes the usual way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from torchkeep.files.buffers import Buffer, Observer
from torchkeep.files.memory import BLOCK_NBYTES, address_of, pages
from torchkeep.files.output import OutputFile
from torchkeep.files.reading import InputFile, unreadable

_WINDOW_NBYTES = 32 << 20
"""What the disk is asked for, or given, in one go: many small ones take more of the processor."""

_LARGE_NBYTES = 1 << 20
"""From here on memory is given to the disk as it lies."""

_CACHED_NBYTES = 256 << 10
"""What is copied and looked at in one go, while it is in the processor's nearest cache."""

_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
"""What a file system answers that took the flag and can't do it."""


class DirectFile(OutputFile):
    """A file that one thread writes from its beginning to its end, past the cache.

    Large memory that begins at the same place in its page as its bytes do in the file is written
    from where it lies. The rest gathers in a window that moves on over the file. What belongs
    before the window goes the usual way, so a header may come last.
    """

    num_threads = 1
    wants_runs = True

    def __init__(self, path: Path, fd: int, *, durable: bool, is_part: bool = False) -> None:
        """Take the file; with `is_part`, what is left out of it is somebody else's to write."""
        super().__init__(path, fd, durable=durable)
        self._is_part = is_part
        self._is_direct = _set_direct(fd, wanted=True)
        self._window = memoryview(pages(_WINDOW_NBYTES))
        self._begin = 0
        """Where in the file the window begins."""
        self._filled = 0
        """How much of the window is to be written."""

    def write_at(self, offset: int, data: Buffer, *, observe: Observer | None = None) -> None:
        """Write all of `data` at `offset`; see `OutputFile.write_at`."""
        view = memoryview(data).cast("B")
        if offset < self._begin:
            behind = self._begin - offset
            with self._by_the_cache():
                super().write_at(offset, view[:behind], observe=observe)
            offset, view = self._begin, view[behind:]
        blocks = _whole_blocks(offset, view)
        if offset < self._begin + self._filled:  # something behind it is in the window
            blocks = slice(len(view), len(view))
        self._gather(offset, view[: blocks.start], observe)
        self._write_memory(offset + blocks.start, view[blocks], observe)
        self._gather(offset + blocks.stop, view[blocks.stop :], observe)

    def _write_memory(self, offset: int, blocks: memoryview, observe: Observer | None) -> None:
        """Write whole blocks from where they lie, and move the window on behind them."""
        if not blocks:
            return
        self._write_rest()
        self._begin, self._filled = offset, 0
        for start in range(0, len(blocks), _WINDOW_NBYTES):
            piece = blocks[start : start + _WINDOW_NBYTES]
            if observe is not None:
                observe(piece)
            self._write_directly(piece)
            self._begin += len(piece)

    def _gather(self, offset: int, view: memoryview, observe: Observer | None) -> None:
        """Put bytes into the window."""
        while view:
            start = self._place_of(offset)
            room = self._window[start : start + min(len(view), _CACHED_NBYTES)]
            room[:] = view[: len(room)]
            if observe is not None:
                observe(room)  # the copy, since that is in the processor's cache
            self._filled = max(self._filled, start + len(room))
            offset, view = offset + len(room), view[len(room) :]

    def _place_of(self, offset: int) -> int:
        """Return where in the window a byte of the file belongs, after moving it if need be."""
        if offset >= self._begin + len(self._window):
            self._write_blocks()
        is_of_others = self._is_part and offset > self._begin + self._filled
        if is_of_others or offset >= self._begin + len(self._window):  # far ahead
            self._write_rest()
            self._begin = offset // BLOCK_NBYTES * BLOCK_NBYTES
            self._filled = 0
        start = offset - self._begin
        if start > self._filled:  # clear what is left there of earlier bytes
            self._window[self._filled : start] = bytes(start - self._filled)
        return start

    def _write_blocks(self) -> None:
        """Write the whole blocks of the window, and move on to the one that has begun."""
        nbytes = self._filled // BLOCK_NBYTES * BLOCK_NBYTES
        self._write_directly(self._window[:nbytes])
        self._filled -= nbytes
        self._window[: self._filled] = self._window[nbytes : nbytes + self._filled]
        self._begin += nbytes

    def _write_directly(self, blocks: memoryview) -> None:
        done = 0
        while self._is_direct and done < len(blocks):
            try:
                done += os.pwrite(self.fd, blocks[done:], self._begin + done)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._is_direct = _set_direct(self.fd, wanted=False)
        if done < len(blocks):
            self._write_chunk(self._begin + done, blocks[done:])

    def _write_rest(self) -> None:
        """Write all that is in the window."""
        self._write_blocks()
        if self._filled:  # no whole block
            with self._by_the_cache():
                self._write_chunk(self._begin, self._window[: self._filled])

    @contextlib.contextmanager
    def _by_the_cache(self) -> Iterator[None]:
        if self._is_direct:
            _set_direct(self.fd, wanted=False)
        try:
            yield
        finally:
            if self._is_direct:
                _set_direct(self.fd, wanted=True)

    def flush(self) -> None:
        """Have all of it written, and on the disk now if it is to be there at the end at all."""
        self._write_rest()
        super().flush()


def _whole_blocks(offset: int, view: memoryview) -> slice:
    """Return which part of some memory is whole blocks of the file, as the disk takes them."""
    none = slice(len(view), len(view))
    # What can't be written to has no address here: it is some header.
    if len(view) < _LARGE_NBYTES or view.readonly or (address_of(view) - offset) % BLOCK_NBYTES:
        return none
    start = -offset % BLOCK_NBYTES
    return slice(start, len(view) - (len(view) - start) % BLOCK_NBYTES)


def read_directly(file: InputFile) -> Iterator[memoryview]:
    """Yield all of a file in chunks, as the disk has it. Each is good until the next is asked for.

    Raises:
        DamagedFile: the file became shorter meanwhile.
        FileUnreadable: the system reports a read error.
    """
    window = memoryview(
        pages(min(_WINDOW_NBYTES, (file.nbytes // BLOCK_NBYTES + 1) * BLOCK_NBYTES))
    )
    is_direct = _set_direct(file.fd, wanted=True)
    done = 0
    while done < file.nbytes:
        nbytes = min(len(window), file.nbytes - done)
        count = _read_blocks(file, window, done) if is_direct else 0
        if count % BLOCK_NBYTES or not count:  # the end, or refused: the rest goes the usual way
            is_direct = is_direct and _set_direct(file.fd, wanted=False)
        if not count:
            file.read_into(done, window[:nbytes])
        yield window[: min(count or nbytes, nbytes)]
        done += count or nbytes


def _read_blocks(file: InputFile, window: memoryview, offset: int) -> int:
    """Return how many bytes were read; none if the file ends here, or can't be read so."""
    try:
        return os.preadv(file.fd, [window], offset)
    except OSError as error:
        if error.errno in _REFUSED:
            return 0
        raise unreadable(file.path, error) from None


def _set_direct(fd: int, *, wanted: bool) -> bool:
    """Have what is read and written go past the cache, or not; return whether it does now."""
    if sys.platform != "linux":
        return False
    import fcntl

    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return wanted
