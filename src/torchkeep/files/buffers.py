"""What bytes are moved in, and the lock where a system can't read and write at a place."""

from __future__ import annotations

import threading

Buffer = bytes | bytearray | memoryview

CHUNK_NBYTES = 2 << 20
"""What is read, hashed or written in one go: small enough to stay in a processor's cache. With
4 MiB, a save of 1 GiB took the system twice the processor time."""

SEEKING = threading.Lock()
"""Held between moving a file's position and using it, where there is no call that does both."""
