"""How far something long is, shown on a terminal's stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torchkeep.wording import size

if TYPE_CHECKING:
    from torchkeep.files import Progress

_SMALL_NBYTES = 256 << 20
"""Files that are smaller are read before anybody could wonder."""


def reading_progress() -> Progress | None:
    """Return what draws the bar, or None where nobody would see it."""
    if not sys.stderr.isatty():
        return None
    last = -1

    def draw(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(total, 1)
        if total < _SMALL_NBYTES or percent == last:
            return
        last = percent
        bar = "#" * (percent // 4)
        text = f"\r{bar:<25} {percent:3} %  {size(done)} of {size(total)}"
        sys.stderr.write(text if done < total else "\r" + " " * len(text) + "\r")
        sys.stderr.flush()

    return draw


@contextmanager
def passing_line() -> Iterator[Callable[[str], None]]:
    """Yield what shows a line in place of the one before it; the last one goes at the end."""

    def show(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        show("")
