"""Numbers and texts are read at places that were checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from formats.building_foreign import field, varint
from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.files import MemoryFile
from torchkeep.formats.cursor import Cursor
from torchkeep.formats.ecosystems.protobuf import as_number, fields
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits


class Counting(MemoryFile):
    """A file that counts what is read of it."""

    nbytes_read = 0

    def read_at(self, offset: int, nbytes: int) -> bytes:
        self.nbytes_read += nbytes
        return super().read_at(offset, nbytes)


def over(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Cursor:
    return Cursor.over(MemoryFile(data, Path("file")), limits)


def test_numbers_are_read_in_either_order() -> None:
    cursor = over(b"\1\2\3\4\xff\xff")
    assert cursor.number(2) == 0x201
    cursor.byteorder = "big"
    assert cursor.number(2) == 0x304
    assert cursor.number(2, signed=True) == -1
    assert cursor.remaining == 0


def test_what_is_not_there_is_not_read() -> None:
    cursor = over(b"12345")
    for call in (
        lambda: cursor.take(6),
        lambda: cursor.skip(-1),
        lambda: cursor.part(1 << 63),
        lambda: cursor.at(6),
        lambda: over(b"\xff\0").count(1, 1),
        lambda: over(b"\x02\0\0\0a").skip_texts(2, 4),
    ):
        with pytest.raises(DamagedFile, match="bytes are needed at byte"):
            call()
    assert cursor.position == 0


def test_a_part_ends_where_it_ends() -> None:
    part = over(b"12345").part(3)
    assert part.take(3) == b"123"
    with pytest.raises(DamagedFile, match="1 bytes are needed at byte 3, and there are 0"):
        part.take(1)


def test_texts_are_cut_and_stepped_over() -> None:
    cursor = over(b"\xc3\xa4bcdef!")
    assert cursor.text(7, 3) == "äb..."
    assert cursor.take(1) == b"!"


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 1 << 32, (1 << 63) - 1, -1, -(1 << 63)])
def test_varints_are_read(number: int) -> None:
    ((tag, value),) = fields(over(field(5, number)))
    assert (tag, as_number(value)) == (5, number)
    with pytest.raises(DamagedFile):
        over(varint(number)[:-1] + b"\x80").varint()


def test_what_is_skipped_is_not_read() -> None:
    file = Counting(bytes(10_000_000), Path("file"))
    cursor = Cursor.over(file, DEFAULT_LIMITS)
    for _ in range(9):
        cursor.take(8)
        cursor.skip(1_000_000)
    assert file.nbytes_read < 100_000


def test_reading_on_takes_larger_pieces() -> None:
    file = Counting(bytes(1_000_000), Path("file"))
    cursor = Cursor.over(file, DEFAULT_LIMITS)
    for _ in range(1_000):
        cursor.take(1_000)
    assert file.nbytes_read < 1_100_000


def test_what_is_taken_is_limited() -> None:
    cursor = over(bytes(100), Limits(header_nbytes=50))
    cursor.take(50)
    with pytest.raises(LimitReached, match="header_nbytes=50"):
        cursor.number(1)


def test_words_are_told_by_the_blanks_between_them() -> None:
    cursor = over(b" 12\n-3  4.5")
    assert [cursor.word(9) for _ in range(3)] == [b"12", b"-3", b"4.5"]
    with pytest.raises(DamagedFile, match="no number stands at byte 11"):
        cursor.word(9)
    with pytest.raises(DamagedFile, match="no number stands at byte 0"):
        over(b"1234567890").word(9)


@pytest.mark.parametrize("count", [0, 1, 2, 1_000, 60_000])
def test_words_are_skipped(count: int) -> None:
    cursor = over(b"12345 " * count + b"end")
    cursor.skip_words(count)
    assert cursor.word(9) == b"end"


def test_words_that_are_missing_are_told() -> None:
    with pytest.raises(DamagedFile, match="numbers are missing at byte"):
        over(b"1 2 3").skip_words(4)


def test_texts_are_skipped_across_pieces() -> None:
    texts = b"".join(bytes([size]) + b"x" * size for size in (0, 1, 200)) * 3_000
    cursor = over(texts + b"!")
    cursor.skip_texts(9_000, 1)
    assert cursor.take(1) == b"!"
