"""Lines for a screen: as wide as it is, and what a verification found.

Values of a file come from `showing`, escaped and cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from torchkeep.showing import clip, elide, shape, show
from torchkeep.wording import counted

if TYPE_CHECKING:
    from torchkeep.identify import Integrity


def columns(stream: TextIO) -> int:
    """Return how wide the stream's terminal is; 0 for a pipe or a file."""
    if not stream.isatty():
        return 0
    import shutil  # a pipe does not need it

    return shutil.get_terminal_size().columns


def wrapped(text: str, stream: TextIO, *, indent: int = 0) -> str:
    """Return a line as the stream's terminal is wide, broken between words; as it is for a pipe.

    Args:
        text: the line.
        stream: where it is to be written.
        indent: how far its further lines are moved to the right.
    """
    width = columns(stream)
    if not width:
        return text
    import textwrap  # nor this

    return textwrap.fill(
        text,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


def what_was_compared(integrity: Integrity) -> str:
    """Return what a verification read and compared."""
    parts = []
    if integrity.num_checked:
        parts.append(f"{counted(integrity.num_checked, 'storage')} compared with checksums")
    if integrity.num_unchecked:
        storages = counted(integrity.num_unchecked, "storage")
        parts.append(f"{storages} read, with nothing to compare with")
    if integrity.num_unread:
        parts.append(f"{counted(integrity.num_unread, 'storage')} NOT read")
    return ", ".join(parts) or "no tensors in it"


__all__ = ["clip", "elide", "shape", "show", "what_was_compared", "wrapped"]
