from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.wording import counted, printable, shortened, size


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("one\ntwo", "one\\ntwo"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\udc80", "\\udc80"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str):
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["größe", "卷积.权重", "fc.weight", "[red]", "C:\\model.pth"])
def test_letters_of_any_script_stay(text: str):
    assert printable(text) == text


@given(st.text(st.characters()))
def test_nothing_unprintable_is_left(text: str):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


def test_a_short_text_stays_and_a_long_one_is_cut_before_it_is_escaped():
    assert shortened("x" * 60) == "x" * 60
    assert shortened("\n" * 61) == "\\n" * 60 + "..."
    assert shortened("abcd", 3) == "abc..."
    assert shortened("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_950, "1.0 MB"), (10**18, "1000.0 PB")],
)
def test_a_size_has_the_unit_that_fits(nbytes: int, shown: str):
    assert size(nbytes) == shown


def test_one_thing_is_singular():
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
