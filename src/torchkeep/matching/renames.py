"""Keys under other names: the user's rules, and what PyTorch itself has renamed.

A rule is `old=new` with `*` for any text: `{"encoder.*": "*"}` drops a prefix, `{"*.gamma":
"*.weight"}` changes an ending. The first rule that matches a key renames it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torchkeep.errors import WrongArgument


def rename(keys: Iterable[str], rules: Mapping[str, str]) -> dict[str, str]:
    """Return every key's new name, by key.

    Args:
        keys: the keys.
        rules: new by old, with as many `*` in the new as in the old at the most: each stands for
            the text that the old's has in its place.

    Raises:
        WrongArgument: two keys would get one name, a rule fits no key, or one can't be read.

    >>> rename(["encoder.fc.weight", "head.bias"], {"encoder.*": "*"})
    {'encoder.fc.weight': 'fc.weight', 'head.bias': 'head.bias'}
    """
    patterns = _compiled(rules)
    names: dict[str, str] = {}
    used: set[str] = set()
    for key in keys:
        names[key] = key
        for old, pattern in patterns.items():
            found = pattern.fullmatch(key)
            if found is not None:
                names[key] = _filled(rules[old], found.groups())
                used.add(old)
                break
    _refuse_idle(rules, used)
    _refuse_collisions(names)
    return names


def first_rule(key: str, rules: Mapping[str, str]) -> str | None:
    """Return the rule that renames a key: its old name."""
    return next((old for old, item in _compiled(rules).items() if item.fullmatch(key)), None)


def _compiled(rules: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    for old, new in rules.items():
        if new.count("*") > old.count("*"):
            raise WrongArgument(
                f"rename: {new!r} has more * than {old!r}",
                advice="Each * in the new name stands for one in the old.",
            )
    return {old: re.compile(re.escape(old).replace(r"\*", "(.*?)"), re.DOTALL) for old in rules}


def _filled(new: str, texts: Iterable[str]) -> str:
    pieces = new.split("*")
    return pieces[0] + "".join(text + piece for text, piece in zip(texts, pieces[1:], strict=False))


def _refuse_idle(rules: Mapping[str, str], used: Collection[str]) -> None:
    for old in rules:
        if old not in used:
            raise WrongArgument(
                f"rename: the rule {old!r} fits no key, or only those that an earlier one renames",
                advice="Correct it, or leave it out.",
            )


def _refuse_collisions(names: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for key, name in names.items():
        other = first.setdefault(name, key)
        if other != key:
            raise WrongArgument(
                f"rename: {other!r} and {key!r} would both be called {name!r}",
                advice="Make the rules tell them apart.",
            )


# --- What PyTorch has renamed ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownRename:
    """A name that a part of a module had at another time, or has in another library."""

    what: str
    """What was renamed, for a person."""
    old: str
    """The old ending; `{name}` is the parameter's name."""
    new: str
    """The new ending."""


_PARAMETRIZATION = "parametrizations.{name}."

KNOWN_RENAMES: tuple[KnownRename, ...] = (
    KnownRename("weight_norm", "{name}_g", _PARAMETRIZATION + "original0"),
    KnownRename("weight_norm", "{name}_v", _PARAMETRIZATION + "original1"),
    KnownRename("spectral_norm", "{name}_orig", _PARAMETRIZATION + "original"),
    KnownRename("spectral_norm", "{name}_u", _PARAMETRIZATION + "0._u"),
    KnownRename("spectral_norm", "{name}_v", _PARAMETRIZATION + "0._v"),
    KnownRename("gamma and beta", "gamma", "weight"),
    KnownRename("gamma and beta", "beta", "bias"),
)
"""Each in both directions.

Sources: torch/nn/utils/weight_norm.py and spectral_norm.py (old), parametrizations.py (new);
TensorFlow's layer norms, as early files of transformers have them.
"""


def other_names(name: str) -> list[tuple[str, str]]:
    """Return what a key may have been called elsewhere, each with what was renamed.

    >>> other_names("conv.weight_g")
    [('conv.parametrizations.weight.original0', 'weight_norm')]
    """
    found = []
    for pattern, template, what in _BOTH_WAYS:
        match = pattern.fullmatch(name)
        if match is not None:
            head, *parameter = match.groups()
            tail = template.format(name=parameter[0] if parameter else "")
            found.append((head + tail, what))
    return found


def _ending(text: str) -> re.Pattern[str]:
    return re.compile(r"((?:.*\.)?)" + re.escape(text).replace(r"\{name\}", r"(\w+)"), re.DOTALL)


_BOTH_WAYS = [
    (_ending(one), other, item.what)
    for item in KNOWN_RENAMES
    for one, other in ((item.old, item.new), (item.new, item.old))
]
