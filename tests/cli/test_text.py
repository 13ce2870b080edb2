from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.cli.text import clip, printable, show, size
from torchkeep.contents import DictObject, Global, Object, Storage, TensorEntry
from torchkeep.wording import counted

WEIGHT = TensorEntry("float32", (2, 3), (3, 1), Storage("0", 24, 0))


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


def test_a_cut_text_says_how_long_it_is():
    assert clip("x" * 5000) == f"{'x' * 160}... (5,000 characters)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (True, "True"),
        (1e-08, "1e-08"),
        ("", '""'),
        ("a\x1b", "a\\x1b"),
        ([1, "two", (3,)], "[1, two, (3)]"),
        ({}, "{}"),
        ({"a\n": 1}, "{a\\n: 1}"),
        ([[[[[1]]]]], "[[[[... (1 item)]]]]"),
        (WEIGHT, "tensor float32 [2, 3]"),
        (Global("torch.nn", "Linear"), "torch.nn.Linear"),
        (Object(Global("a\x1b", "B"), ()), "a\\x1b.B(...)"),
        (b"\x00", "b'\\x00'"),
    ],
)
def test_a_value_is_written_as_a_person_would(value: object, shown: str):
    assert show(value) == shown


def test_a_mapping_with_a_class_says_which():
    assert show(DictObject("collections.OrderedDict")) == "collections.OrderedDict {}"


def test_a_long_list_says_how_many_items_it_has():
    assert show(list(range(100_000))) == "[0, 1, 2, 3, 4, 5, 6, 7, ... (100,000 items)]"


def test_an_integer_too_long_to_write_is_described():
    huge = 1 << (4 * sys.int_info.default_max_str_digits)
    assert show(huge) == f"(an integer of {huge.bit_length():,} bits)"


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_950, "1.0 MB"), (10**18, "1000.0 PB")],
)
def test_a_size_has_the_unit_that_fits(nbytes: int, shown: str):
    assert size(nbytes) == shown


def test_one_thing_is_singular():
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
