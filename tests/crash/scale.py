"""How much is tried, and what may be."""

from __future__ import annotations

import os
import sys

IS_ALL = os.environ.get("TORCHKEEP_CRASH") == "all"
"""Whether all is tried (`make test-crash`), or a small part of each kind (`make test`)."""


def is_root() -> bool:
    return sys.platform.startswith("linux") and os.geteuid() == 0
