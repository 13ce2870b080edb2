"""A source hands out the bytes of a window, reading no more of the file than it must."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from torchkeep.errors import DamagedFile, LimitReached
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.source import ByteSource

DATA = random.Random(0).randbytes(300_000).replace(b"\n", b"x") + b"\nlast\n"


def counted(data: bytes) -> tuple[Callable[[int, int], bytes], list[tuple[int, int]]]:
    reads: list[tuple[int, int]] = []

    def read_at(offset: int, nbytes: int) -> bytes:
        reads.append((offset, nbytes))
        return data[offset : offset + nbytes]

    return read_at, reads


def test_bytes_come_in_order_whatever_the_pieces() -> None:
    rng = random.Random(1)
    read_at, _ = counted(DATA)
    source = ByteSource(read_at, 7, len(DATA))
    expected = 7
    while source.remaining:
        assert source.position == expected
        nbytes = min(source.remaining, rng.choice([0, 1, 1, 5, 100, 20_000]))
        if nbytes == 1:
            assert source.byte() == DATA[expected]
        else:
            assert source.take(nbytes) == DATA[expected : expected + nbytes]
        expected += nbytes
    assert expected == len(DATA)


def test_a_line_ends_before_its_newline_however_long_it_is() -> None:
    source = ByteSource.of_bytes(b"a\n\n" + DATA)
    assert source.line() == b"a"
    assert source.line() == b""
    assert source.line() == DATA.split(b"\n")[0]
    assert source.take(2) == b"la"
    assert source.line() == b"st"
    assert source.remaining == 0


def test_no_byte_is_read_twice_and_few_are_read_ahead() -> None:
    read_at, reads = counted(DATA)
    source = ByteSource(read_at, 0, len(DATA))
    source.take(10)
    assert reads == [(0, 1 << 14)]
    while source.remaining > 100:
        source.take(100)
    ends = [offset + nbytes for offset, nbytes in reads]
    assert [offset for offset, _ in reads] == [0, *ends[:-1]]


def test_nothing_behind_the_window_is_read() -> None:
    read_at, reads = counted(DATA)
    source = ByteSource(read_at, 100, 200)
    assert source.take(100) == DATA[100:200]
    assert reads == [(100, 100)]


@pytest.mark.parametrize("want", [lambda s: s.take(11), lambda s: s.byte(), lambda s: s.line()])
def test_the_end_of_the_window_is_truncation(want: Callable[[ByteSource], object]) -> None:
    source = ByteSource(lambda offset, nbytes: DATA[offset : offset + nbytes], 0, 10)
    source.take(0 if want(ByteSource.of_bytes(b"\n" * 11)) == b"\n" * 11 else 10)
    with pytest.raises(DamagedFile, match="the pickle is truncated at byte 10"):
        want(source)


def test_a_bound_is_counted_from_where_it_was_set() -> None:
    source = ByteSource.of_bytes(DATA)
    source.take(50_000)
    source.allow(Limits(pickle_nbytes=100))
    source.take(100)
    with pytest.raises(LimitReached, match="the limit pickle_nbytes=100 allows"):
        source.take(100_000)
    with pytest.raises(LimitReached, match="the limit pickle_nbytes=100 allows"):
        source.line()
