"""Numbers of the command line that have a least value."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is at least so much.

    >>> whole(1)("64")
    64
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
        return number

    return read
