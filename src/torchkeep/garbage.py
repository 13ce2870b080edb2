"""Python's garbage collector, told to wait.

It looks at every object of the process when enough new ones were made, and those of PyTorch are
many: 10 to 30 milliseconds, in the midst of whatever makes a few thousand small objects.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no cycles until the block ends; what is in none is freed as ever.

    For work that makes many objects and few cycles. It holds for all threads.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
