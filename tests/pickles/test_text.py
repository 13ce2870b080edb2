"""Text in pickles is read as C reads it; every case is checked against CPython itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickles.comparing import same
from torchkeep.errors import DamagedFile
from torchkeep.pickles.text import decimal, integer, long_integer, memo_index, quoted


def put_and_get(line: bytes) -> int:
    """Return the memo index that C takes from a line, of those up to 99."""
    for index in range(100):
        try:
            return int(
                pickle.loads(b"Np" + line + b"\nj" + index.to_bytes(4, "little") + b"0K%c." % index)
            )
        except pickle.UnpicklingError as error:
            if "Memo value not found" not in str(error):
                raise
    raise pickle.UnpicklingError


READERS: list[tuple[Callable[[bytes], Any], Callable[[bytes], Any]]] = [
    (integer, lambda line: pickle.loads(b"I" + line + b"\n.")),
    (long_integer, lambda line: pickle.loads(b"L" + line + b"\n.")),
    (decimal, lambda line: pickle.loads(b"F" + line + b"\n.")),
    (memo_index, put_and_get),
    (quoted, lambda line: pickle.loads(b"S" + line + b"\n.", encoding="bytes")),
]
LINES = [
    *[
        b"0",
        b"7",
        b"00",
        b"01",
        b"+1",
        b"-0",
        b" 1",
        b"1 ",
        b"08",
        b"010",
        b"0x10",
        b"0b11",
        b"0o7",
    ],
    *[
        b"1_0",
        b"1__0",
        b"1\0",
        b"1\0x",
        b"\0",
        b" \0",
        b"5L",
        b"5LL",
        b"L",
        b"1e5",
        b"1e999",
        b".5",
    ],
    *[b"inf", b"-Infinity", b"nan", b"1.5 ", b" 1.5", b"1_5.0", b"\xff", b"\xd9\xa1", b"-12"],
    *[b"'a'", b'"a"', b"'a\"", b"'", b"''", b"'\\x41\\n'", b"'\\x4'", b"'a' ", b"'\\q'", b"a"],
    *[b"9223372036854775808", b"0777777777777777777777777", b"9" * 5000],
]
lines = st.lists(st.sampled_from(b"0179xX_ +-.eL\0'\\n"), min_size=1, max_size=6).map(bytes)


@pytest.mark.parametrize(("mine", "theirs"), READERS, ids=lambda reader: reader.__name__)
@pytest.mark.filterwarnings("ignore:invalid escape")
def test_a_line_is_read_as_c_reads_it(
    mine: Callable[[bytes], Any], theirs: Callable[[bytes], Any]
) -> None:
    for line in LINES:
        check(mine, theirs, line)


@pytest.mark.parametrize(("mine", "theirs"), READERS, ids=lambda reader: reader.__name__)
@pytest.mark.filterwarnings("ignore:invalid escape")
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(line=lines)
def test_any_line_is_read_as_c_reads_it(
    mine: Callable[[bytes], Any], theirs: Callable[[bytes], Any], line: bytes
) -> None:
    check(mine, theirs, line)


def check(mine: Callable[[bytes], Any], theirs: Callable[[bytes], Any], line: bytes) -> None:
    try:
        expected = theirs(line)
    except (ValueError, OverflowError, EOFError, MemoryError, pickle.UnpicklingError):
        if mine is memo_index and _is_large(line):  # C has no room for it, or we did not look
            return
        with pytest.raises(DamagedFile):
            mine(line)
    else:
        assert same(mine(line), expected), line


def _is_large(line: bytes) -> bool:
    """Whether a memo index is negative, which the machine refuses later, or above 99."""
    try:
        return not 0 <= memo_index(line) < 100
    except DamagedFile:
        return False
