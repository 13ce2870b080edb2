"""Limits name themselves, the amount that was allowed, and how to raise them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from torchkeep.errors import LimitReached
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits


def test_an_amount_up_to_the_limit_is_fine() -> None:
    Limits(records=5).check("records", 5)


def test_an_amount_above_the_limit_says_which_one_and_what_to_do() -> None:
    with pytest.raises(LimitReached) as caught:
        Limits(records=5_000).check("records", 5_001)
    assert str(caught.value) == (
        "reading needs more than the limit records=5,000 allows. "
        "If you trust the file, allow more: limits=Limits(records=...) in Python, "
        "--limit records=... on the command line."
    )
    assert caught.value.exit_code == 6


def test_every_limit_is_a_positive_number() -> None:
    assert all(getattr(DEFAULT_LIMITS, field.name) > 0 for field in fields(Limits))
