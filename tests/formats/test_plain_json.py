"""JSON of strangers: parsed strictly, and what is wrong with it in one error."""

from __future__ import annotations

import math

import pytest

from torchkeep.errors import DamagedFile
from torchkeep.formats.plain_json import json_or_text, parse_json


def test_json_is_parsed() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "\u00e4"]}'.encode()) == {
        "a": [1, 2.5, None, True, "\u00e4"]
    }


def test_what_python_writes_for_nan_is_taken_where_it_is_asked_for() -> None:
    text = b'{"loss": NaN, "best": -Infinity}'
    table = parse_json(text, allow_nan=True)
    assert math.isnan(table["loss"])
    assert table["best"] == -math.inf
    with pytest.raises(DamagedFile, match="NaN is no number"):
        parse_json(text)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it is no valid JSON"),
        (b"{", "it is no valid JSON"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b'{"b": {"a": 1, "a": 2}}', "a key stands twice"),
        (b'{"\\ud800": 1}', "a text in it is not Unicode"),
        (b'{"a": "\\udfff"}', "a text in it is not Unicode"),
        (b'{"a": "\xff"}', "it is no valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "it is no valid JSON"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b"1" * 5_000, "it is no valid JSON"),
    ],
)
def test_what_is_no_json_is_one_error(data: bytes, problem: str) -> None:
    with pytest.raises(DamagedFile, match=problem):
        parse_json(data)


def test_a_text_is_parsed_as_bytes_are():
    assert parse_json('{"a": "\u00e4"}') == {"a": "\u00e4"}
    with pytest.raises(DamagedFile, match="it is no valid JSON"):
        parse_json('["\ud800"]')


@pytest.mark.parametrize("text", ["no JSON", "", '["\ud800"]', '{"a": 1, "a": 2}', "[" * 100_000])
def test_what_is_no_json_is_the_text_itself(text: str):
    assert json_or_text(text) is text
    assert json_or_text('{"a": 1}') == {"a": 1}
