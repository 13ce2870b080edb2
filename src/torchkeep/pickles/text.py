"""What the text opcodes of protocol 0 say, read as CPython's `_pickle.c` reads it.

C reads numbers in three ways that differ from each other and from Python's `int`. They are kept
apart here, because a memo index that two readers take for different numbers hides a value.
"""

from __future__ import annotations

import codecs
import math
import re
import warnings

from torchkeep.errors import DamagedFile


def memo_index(line: bytes) -> int:
    """Return the index of PUT or GET: decimal, whatever it starts with.

    Raises:
        DamagedFile: it is no number. The other functions here raise the same.
    """
    return _python_int(line, 10)


def integer(line: bytes) -> int | bool:
    """Return what INT pushes: a number as C's strtol with base 0 sees it, or a flag.

    >>> integer(b"017"), integer(b"0x1f"), integer(b"01"), integer(b"1")
    (15, 31, True, 1)
    """
    value = _any_base(line)
    # Protocol 0 writes True as "01"; C takes any two characters that make 0 or 1.
    is_flag = len(line) == 2 and value in (0, 1) and not _until_zero(line)[-1:].isspace()
    return bool(value) if is_flag else value


def long_integer(line: bytes) -> int:
    """Return what LONG pushes: a Python number, with or without an L behind it."""
    return _python_int(line[:-1] if line.endswith(b"L") else line, 0)


def decimal(line: bytes) -> float:
    """Return what FLOAT pushes; as in C's PyOS_string_to_double, no spaces and none too large."""
    number = _until_zero(line)
    try:
        if b"_" in number or number.strip() != number:
            raise ValueError
        value = float(number)
        if math.isinf(value) and b"n" not in number.lower():
            raise ValueError
    except ValueError:
        raise DamagedFile(f"the pickle has {line[:40]!r} where a float belongs") from None
    return value


def quoted(line: bytes) -> bytes:
    r"""Return the bytes that STRING writes between quotes.

    >>> quoted(rb"'a\x41'")
    b'aA'
    """
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise DamagedFile("the pickle has a string without its quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python now frowns on are fine in data
        try:
            return codecs.escape_decode(line[1:-1])[0]
        except ValueError as error:
            raise DamagedFile(f"the pickle has a broken string ({error})") from None


def _until_zero(line: bytes) -> bytes:
    """Return a line up to its first zero byte, where text ends for C."""
    return line.partition(b"\0")[0]


def _python_int(line: bytes, base: int) -> int:
    """Return a number as C's PyLong_FromString sees it."""
    try:
        return int(_until_zero(line), base)
    except ValueError:
        raise DamagedFile(f"the pickle has {line[:40]!r} where an integer belongs") from None


_OCTAL = re.compile(rb"[ \t\n\v\f\r]*[+-]?0[0-7]+")


def _any_base(line: bytes) -> int:
    """Return a number as strtol sees it, or else PyLong_FromString; both with base 0."""
    number = _until_zero(line)
    if not number:  # strtol finds nothing, stops at the zero byte, and is content
        return 0
    if _OCTAL.fullmatch(number):
        value = int(number, 8)
        if -(1 << 63) <= value < 1 << 63:
            return value
    return _python_int(line, 0)
