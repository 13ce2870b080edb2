"""What bytes are moved in, who is told, and the lock where no call reads or writes at a place."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Callable

Buffer = bytes | bytearray | memoryview

Progress = Callable[[int, int], object]
"""Is called with the number of bytes that were read or written, and of all that will be: one call
at a time, a writer's from other threads than the caller's."""

CHUNK_NBYTES = 2 << 20
"""What is read, hashed or written in one go: small enough to stay in a processor's cache. With
4 MiB, a save of 1 GiB took the system twice the processor time."""

SEEKING = threading.Lock()
"""Held between moving a file's position and using it, where there is no call that does both."""


def address_of(memory: memoryview) -> int:
    """Return where writable memory begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def memory_at(address: int, nbytes: int) -> memoryview:
    """Return a writable view of memory, which must stay where it is as long as the view is used."""
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def pages(nbytes: int) -> mmap.mmap:
    """Return fresh memory that begins with a page; `nbytes` is not 0.

    Linux is asked for huge pages: to give the disk a thousand small ones takes several times the
    processor time. A process that is forked does not inherit it. If it did, each page would be
    copied when it is written to next, and the disk could go on filling the one that is no longer
    this process's.
    """
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for name in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        if hasattr(mmap, name):
            with contextlib.suppress(OSError):  # a system that was built without
                memory.madvise(getattr(mmap, name))
    return memory
