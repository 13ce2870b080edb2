"""Memory by its address, and memory that the disk can take as it lies."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

BLOCK_NBYTES = 4096
"""A multiple of what disks call a block; pages of memory are multiples of it."""


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
