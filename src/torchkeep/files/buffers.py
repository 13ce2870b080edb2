"""What bytes are moved in, who is told, and the lock where no call reads or writes at a place."""

from __future__ import annotations

import threading
from collections.abc import Callable

Buffer = bytes | bytearray | memoryview

Progress = Callable[[int, int], object]
"""Is called with the number of bytes that were read or written, and of all that will be: one call
at a time, a writer's from other threads than the caller's."""

Observer = Callable[[memoryview], object]
"""Is given bytes that are about to be written."""

CHUNK_NBYTES = 2 << 20
"""What is read, hashed or written in one go: small enough to stay in a processor's cache. With
4 MiB, a save of 1 GiB took the system twice the processor time."""

SEEKING = threading.Lock()
"""Held between moving a file's position and using it, where there is no call that does both."""
