"""Protocol buffers' wire format, walked without a schema.

Layout: a message is a row of fields. Each is a varint `number << 3 | type`, and a value: type 0 a
varint, 1 eight bytes, 2 a varint length and so many bytes (a text, a message, packed numbers),
5 four bytes. Types 3 and 4 (groups) are used by none of the formats here.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from torchkeep.errors import DamagedFile
from torchkeep.formats.cursor import Cursor

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_KINDS = frozenset({_VARINT, _BYTES, *_FIXED})


def fields(message: Cursor) -> Iterator[tuple[int, int | Cursor]]:
    """Yield the fields of a message: the number, and a number or a cursor over the bytes.

    Raises:
        DamagedFile: it is no message, or ends in the middle of a field.
        LimitReached: more bytes than `header_nbytes` were read.
    """
    while message.remaining:
        tag = message.varint()
        number, kind = tag >> 3, tag & 7
        if not number or kind not in _KINDS:
            raise DamagedFile(f"the file is overwritten: no field starts at {message.position:,}")
        if kind == _BYTES:
            yield number, message.part(message.varint())
        elif kind == _VARINT:
            yield number, message.varint()
        else:
            yield number, message.number(_FIXED[kind])


def as_part(value: int | Cursor) -> Cursor:
    """Return the bytes of a field that must have some."""
    if isinstance(value, int):
        raise DamagedFile("a number stands where a text or a message is expected")
    return value


def as_number(value: int | Cursor, bits: int = 64) -> int:
    """Return the number of a field that must be one, read as signed."""
    if isinstance(value, Cursor):
        raise DamagedFile(f"bytes stand at {value.position:,} where a number is expected")
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def as_text(value: int | Cursor, longest: int = 1_000) -> str:
    """Return the text of a field, cut off after `longest` bytes."""
    part = as_part(value)
    return part.text(part.remaining, longest)


def as_numbers(value: int | Cursor, most: int) -> list[int]:
    """Return the numbers of a repeated field: packed into bytes, or one by itself.

    Raises:
        DamagedFile: there are more than `most` of them.
    """
    if isinstance(value, int):
        return [as_number(value)]
    if value.remaining > most * 10:
        raise DamagedFile(f"more than {most} numbers stand at {value.position:,}")
    numbers = []
    while value.remaining:
        numbers.append(as_number(value.varint()))
    return numbers
