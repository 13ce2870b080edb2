"""converting/names.py: prefixes go first, then the rules apply."""

from __future__ import annotations

import pytest

from torchkeep.converting.names import new_names
from torchkeep.errors import WrongArgument

KEYS = ["module.net.a", "module.net.b"]


def test_nothing_changes_unasked() -> None:
    assert new_names(KEYS, None, {}) == {key: key for key in KEYS}


def test_wrappers_or_a_prefix_are_stripped() -> None:
    assert list(new_names(KEYS, True, {}).values()) == ["net.a", "net.b"]
    assert list(new_names(KEYS, "module.net", {}).values()) == ["a", "b"]
    assert list(new_names(KEYS, "module.net.", {}).values()) == ["a", "b"]
    assert new_names(["a.x", "b"], "a", {}) == {"a.x": "x", "b": "b"}


def test_rules_see_what_is_left() -> None:
    assert list(new_names(KEYS, True, {"net.*": "*"}).values()) == ["a", "b"]
    with pytest.raises(WrongArgument, match=r"the rule 'module\.\*' fits no key"):
        new_names(KEYS, True, {"module.*": "*"})


def test_two_keys_of_one_name_are_refused() -> None:
    with pytest.raises(WrongArgument, match=r"'a\.x' and 'x' would both be called 'x'"):
        new_names(["a.x", "x"], "a", {})
