"""The JSON form holds what JSON can say, and says in words what it can't."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torchkeep.contents import Global
from torchkeep.identify.json_form import describe_value, jsonable, readable_metadata


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        (True, True),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (float("-inf"), "-inf"),
        (1j, "<1j>"),
        (b"abc", "<3 bytes>"),
        (Global("os", "system"), "<os.system>"),
        ((1, {2: [3]}), [1, {"2": [3]}]),
        (list(range(1001)), "<list of 1001>"),
    ],
)
def test_a_value_is_spelled_out_or_described(value: Any, form: Any):
    assert jsonable(value) == form
    json.dumps(jsonable(value), allow_nan=False)


def test_an_integer_too_long_to_be_written_is_described():
    assert jsonable(1 << 20_000) == "<integer of 20001 bits>"


def test_a_value_that_contains_itself_ends():
    loop: list[Any] = []
    loop.append(loop)
    assert jsonable(loop, depth=2) == [["<list of 1>"]]


def test_what_has_no_name_is_described_by_its_type():
    assert describe_value(range(3)) == "<range>"


def test_values_that_hold_one_another_twice_do_not_unfold():
    level: Any = [1, 2]
    for _ in range(18):
        level = [level, level]
    text = str(jsonable(level))
    assert "<list of 2>" in text
    assert len(text) < 20_000


def test_what_only_a_program_reads_of_the_metadata_is_told_in_words():
    metadata = {"torchkeep.samples": "[]", "torchkeep.structure": "x" * 1234, "run": "x" * 1234}
    assert readable_metadata(metadata) == {
        "torchkeep.samples": "its stored samples can't be read: they have no version 1; a newer "
        "torchkeep may know them. Copy or download the file again.",
        "torchkeep.structure": "1,234 characters",
        "run": "x" * 1234,
    }
