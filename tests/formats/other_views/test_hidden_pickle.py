"""What does not look like a pickle, and what Python would run as one all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchkeep.contents import Global
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.other_views.hidden_pickle import find_hidden_pickle
from torchkeep.pickles.limits import DEFAULT_LIMITS

CALL = b"cos\nsystem\n(S'id'\ntR"


def hidden(data: bytes) -> tuple[list[str], list[str]]:
    names, findings = find_hidden_pickle(MemoryFile(data, Path("a.txt")), DEFAULT_LIMITS)
    return [str(name) for name in names], [finding.rule for finding in findings]


@pytest.mark.parametrize(
    "data",
    [
        b"N0" + CALL + b".",
        b"I1\n0" + CALL + b".",
        b"S'text'\n0" + CALL + b" and more text",
        b"N0" + CALL,
        b"N0(S'id'\nios\nsystem\n\xff",
        b"N0(cos\nsystem\nS'id'\no\xff",
        b"N0cos\nsystem\n)\x81\xff",
        b"N0cos\nsystem\n}b\xff",
    ],
)
def test_what_acts_before_it_breaks_is_found(data: bytes) -> None:
    names, rules = hidden(data)
    assert names == ["os.system"]
    assert rules[-1] == "hidden-pickle"


def test_a_name_that_is_made_at_run_time_is_found() -> None:
    names, rules = hidden(b"\x8c\x02os(\x8c\x01xl\x93")
    assert names == []
    assert rules == ["computed-global", "hidden-pickle"]


def test_what_runs_without_an_end_is_not_let_off() -> None:
    assert hidden(b"N0" * 600_000)[1] == ["hidden-pickle"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"import torch\n",
        b"class Net {\n  int x;\n};\n",
        b"commit\nfix\nDate: today\n",
        b"Not found",
        b"I1\n.",
        b"(lp0\n.",
        b"cos\nsystem\n and then nothing",
        b"P a persistent id\n.",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_what_does_nothing_is_let_off(data: bytes) -> None:
    assert hidden(data) == ([], [])


def test_a_text_that_is_a_pickle_is_reported_with_its_names() -> None:
    file = MemoryFile(b"I1\n0" + CALL + b".", Path("notes.txt"))
    contents = examine_open(file, DEFAULT_LIMITS)
    assert contents.container == "text"
    assert contents.globals == (Global("os", "system"),)
    assert [(f.rule, f.severity) for f in contents.findings] == [("hidden-pickle", "ambiguous")]
