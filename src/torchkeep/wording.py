"""Numbers and names as people read them, in summaries, findings and on the screen."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the right form.

    >>> counted(1, "tensor"), counted(1234, "tensor"), counted(2, "class"), counted(2, "batch")
    ('1 tensor', '1,234 tensors', '2 classes', '2 batches')
    """
    plural = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def size(nbytes: int) -> str:
    """Return a number of bytes in the largest decimal unit that leaves a digit before the point.

    >>> size(999), size(44_700_000), size(1_500_000_000)
    ('999 B', '44.7 MB', '1.5 GB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    value, units = nbytes / 1000, ["PB", "TB", "GB", "MB", "kB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop()
    return f"{value:.1f} {units[-1]}"


def share(number: float) -> str:
    """Return a share in percent, rounded down, so that only all of it is 100.0%.

    >>> share(1.0), share(0.9999), share(0.512345)
    ('100.0%', '99.9%', '51.2%')
    """
    return f"{int(number * 1000 + 1e-9) / 10:.1f}%"


def printable(text: str) -> str:
    r"""Return `text` with everything that is not a plain visible character escaped.

    That takes control characters, terminal escapes, line breaks, direction overrides, invisible
    characters and halves of surrogate pairs; letters of any script stay.

    >>> printable("fc\x1b[31m.weight")
    'fc\\x1b[31m.weight'
    >>> printable("größe\n")
    'größe\\n'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def shortened(text: str, longest: int = 60) -> str:
    r"""Return a text that stands in one line: escaped, and cut off after `longest` characters.

    >>> shortened("a\nb"), shortened("x" * 100, longest=3)
    ('a\\nb', 'xxx...')
    """
    return printable(text if len(text) <= longest else f"{text[:longest]}...")
