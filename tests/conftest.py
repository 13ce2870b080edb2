"""What all tests share: one thread for torch, and property tests that are the same everywhere."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Before torch is imported anywhere, and inherited by the processes that tests start: most tensors
# here are tiny, and two processes with all threads each would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it starts with `&` ignore Ctrl-C, and all that is started from there. Tests send
# it to the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, since a busy machine is no failure; derandomized, so that a failure comes back.
settings.register_profile("torchkeep", deadline=None, derandomize=True, database=None)
settings.load_profile("torchkeep")
