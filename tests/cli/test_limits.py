"""`--limit NAME=VALUE`, the same for each verb that reads files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import torchkeep
from torchkeep.cli import main


def test_a_limit_bounds_the_reading_and_the_message_says_how_to_raise_it(checkpoint, capsys):
    assert main(["inspect", "--limit", "steps=100", "--limit", "depth=5_0", str(checkpoint)]) == 6
    assert capsys.readouterr().err == (
        f"torchkeep: {checkpoint}: the pickle has more than steps=100 opcodes. "
        "If you trust the file, allow more: limits=Limits(steps=...) in Python, "
        "--limit steps=... on the command line.\n"
    )
    assert main(["inspect", "--limit", "steps=100_000", str(checkpoint)]) == 0


@pytest.mark.parametrize("text", ["speed=3", "", "="])
def test_a_limit_of_no_known_name_is_a_usage_error_that_lists_the_names(text: str, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", "--limit", text, "a.pth"])
    assert exit_.value.code == 2
    names = ", ".join(field.name for field in fields(torchkeep.Limits))
    problem = f"{text.partition('=')[0]!r} is no limit: use one of {names}"
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("amount", ["", "much", "0", "-5", "1.5"])
def test_a_limit_is_a_whole_number_above_0(amount: str, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", "--limit", f"steps={amount}", "a.pth"])
    assert exit_.value.code == 2
    problem = f"steps needs a whole number above 0, not {amount!r}\n"
    assert capsys.readouterr().err.endswith(problem)


@pytest.mark.parametrize(("verb", "code"), [("inspect", 6), ("verify", 6), ("scan", 13)])
def test_each_verb_that_reads_has_limits(verb: str, code: int, checkpoint: Path, capsys):
    assert main([verb, "--limit", "steps=100", str(checkpoint)]) == code
    captured = capsys.readouterr()
    assert "more than steps=100 opcodes" in captured.out + captured.err


def test_the_last_limit_of_a_name_holds(checkpoint: Path):
    assert (
        main(["inspect", "--limit", "steps=100", "--limit", "steps=100_000", str(checkpoint)]) == 0
    )
