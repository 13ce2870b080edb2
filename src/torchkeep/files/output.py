"""A file while it is written: room for it, and bytes at places from several threads."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from torchkeep.files.buffers import CHUNK_NBYTES, SEEKING, Buffer, Observer
from torchkeep.files.parallel import NUM_THREADS


class OutputFile:
    """A file that is being written under a temporary name.

    Attributes:
        path: the name that it will have.
        durable: whether it will be synced at the end.
        num_threads: how many may write at once.
        wants_runs: whether neighbours in memory are best written in one call, and hashed before.
    """

    num_threads = NUM_THREADS
    wants_runs = False

    def __init__(self, path: Path, fd: int, *, durable: bool) -> None:
        self.path = path
        self.fd = fd
        self.durable = durable

    def reserve(self, nbytes: int) -> None:
        """Allocate `nbytes` on the disk now, so that a full disk shows before any work."""
        allocate = _fallocate()
        if allocate is None:
            os.truncate(self.fd, nbytes)
        elif nbytes and (error := allocate(self.fd, nbytes)) in _NO_ROOM:
            raise OSError(error, os.strerror(error))
        # A file system that can't is no reason to fail: the writes will tell.

    def write_at(self, offset: int, data: Buffer, *, observe: Observer | None = None) -> None:
        """Write all of `data` at `offset`. Up to `num_threads` threads may write, each elsewhere.

        `observe` is given each piece just before it is written. Small ones are on their way through
        the processor's cache then anyway; this is how a digest costs next to nothing.
        """
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_NBYTES):
            chunk = view[start : start + CHUNK_NBYTES]
            if observe is not None:
                observe(chunk)
            self._write_chunk(offset + start, chunk)

    def _write_chunk(self, offset: int, chunk: memoryview) -> None:
        start, nbytes = offset, len(chunk)
        while chunk:
            if hasattr(os, "pwrite"):
                count = os.pwrite(self.fd, chunk, offset)
            else:  # Windows: one writer at a time
                with SEEKING:
                    os.lseek(self.fd, offset, os.SEEK_SET)
                    count = os.write(self.fd, chunk)
            chunk = chunk[count:]
            offset += count
        if self.durable and nbytes >= _WRITEBACK_NBYTES and hasattr(os, "posix_fadvise"):
            # Linux takes this as "start writing these pages to the disk now". The disk then
            # works beside us, and the sync at the end has little left to wait for.
            os.posix_fadvise(self.fd, start, nbytes, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        """Have all of it written, and on the disk now if it is to be there at the end at all."""
        if self.durable:
            os.fsync(self.fd)


_WRITEBACK_NBYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@functools.cache
def _fallocate() -> Callable[[int, int], int] | None:
    """Return Linux's own call, which returns an error number or 0; None on other systems.

    `os.posix_fallocate` won't do. Where the file system can't allocate (NFS 3, FUSE, ext2), it
    writes a byte into every single block instead, and that can take longer than to write the file.
    """
    if sys.platform != "linux":
        return None
    import ctypes  # here, since reading needs it not

    library = ctypes.CDLL(None, use_errno=True)

    def allocate(fd: int, nbytes: int) -> int:
        failed = library.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes))
        return ctypes.get_errno() if failed else 0

    return allocate
