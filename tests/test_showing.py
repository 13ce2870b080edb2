from __future__ import annotations

import sys

import pytest

from torchkeep.contents import DictObject, Global, Object, Storage, TensorEntry
from torchkeep.showing import clip, show

WEIGHT = TensorEntry("float32", (2, 3), (3, 1), Storage("0", 24, 0))


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
