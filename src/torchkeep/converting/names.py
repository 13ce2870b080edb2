"""The names that the keys of a state dict get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from torchkeep.matching.keys import strip_wrappers
from torchkeep.matching.renames import rename

Strip = Literal[True] | str | None
"""What is taken from the front of keys: what wrappers put there, a prefix, or nothing."""


def new_names(keys: Iterable[str], strip: Strip, rules: Mapping[str, str]) -> dict[str, str]:
    """Return each key's new name: first a prefix is stripped, then the rules apply.

    Raises:
        WrongArgument: a prefix or a rule fits no key, or two keys would get one name.
    """
    keys = list(keys)
    if isinstance(strip, str):
        prefix = strip if strip.endswith(".") else f"{strip}."
        stripped = rename(keys, {f"{prefix}*": "*"})
    else:
        stripped = strip_wrappers(keys) if strip else dict(zip(keys, keys, strict=True))
    if not rules:
        return stripped
    names = rename(stripped.values(), rules)
    return {key: names[bare] for key, bare in stripped.items()}
