"""Numbers as people write them, in summaries, findings and on the screen."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the right form.

    >>> counted(1, "tensor"), counted(1234, "tensor"), counted(2, "class")
    ('1 tensor', '1,234 tensors', '2 classes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
