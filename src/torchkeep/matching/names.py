"""Which key of a file is which key of a model, by name alone.

One step after the other, and each only as far as it brings more keys together:

1. the user's rules rename the file's keys;
2. components of wrappers come off before all keys of a side: `module.` once, twice, mixed;
3. one prefix comes off before the keys of a side: `model.` of Lightning, `backbone.`;
4. of the keys that are left, those meet that differ by wrappers further down, or by a name that
   PyTorch has changed, wherever just one fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torchkeep.errors import WrongArgument
from torchkeep.matching.keys import WRAPPERS, levels, strip_wrappers
from torchkeep.matching.renames import other_names, rename


@dataclass(frozen=True, slots=True)
class MatchedNames:
    """The keys of a file and of a model that are the same by name."""

    pairs: dict[str, str]
    """The file's key by the model's."""
    source: dict[str, str]
    """What the user may call each key of the file: without wrappers, and renamed."""
    names: dict[str, str]
    """What each key of the file would be called in the model, its wrappers aside."""
    renamed: tuple[str, ...]
    """What PyTorch has renamed between the two, such as `weight_norm`."""


def match_names(
    source: Collection[str],
    target: Mapping[str, str],
    rules: Mapping[str, str] | None = None,
    converted: Mapping[str, str] | None = None,
) -> MatchedNames:
    """Return which keys are the same.

    Args:
        source: the file's keys.
        target: the model's keys, each with its name without wrappers, as far as these are known.
        rules: the user's renames (see `renames.rename`) of the file's keys, without the components
            of wrappers or, if they fit none of these, with them.
        converted: names in the model that some keys of the file are known to have.

    Raises:
        WrongArgument: a rule fits no key, or gives two keys one name.
    """
    names = dict(zip(source, source, strict=True))
    if not rules and not converted and set(source) == set(target.values()):  # as a rule
        return MatchedNames(_same(names, target), names, names, ())
    called = strip_wrappers(source)
    if rules:
        names = called = _by_rules(called, rules)
    names, wanted = _without_leading_wrappers(names, target)
    names, wanted = _without_prefix(names, wanted)
    names |= converted or {}
    pairs = _same(names, wanted)
    pairs |= _alike(names, wanted, pairs, lambda name: [_unwrapped(name)], _unwrapped)
    pairs |= _alike(names, wanted, pairs, _once_called, lambda name: name)
    return MatchedNames(pairs, called, names, _renames_in(pairs, names, wanted))


def _by_rules(called: Mapping[str, str], rules: Mapping[str, str]) -> dict[str, str]:
    try:
        new = rename(called.values(), rules)
    except WrongArgument:
        try:
            return rename(called, rules)  # they may be written for the keys as they stand
        except WrongArgument:
            pass
        raise
    return {key: new[name] for key, name in called.items()}


def _same(names: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    by_name = {name: key for key, name in names.items()}
    return {key: by_name[name] for key, name in wanted.items() if name in by_name}


# --- Before all keys -----------------------------------------------------------------------------


def _without_leading_wrappers(
    names: Mapping[str, str], target: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return both sides with as few wrappers taken off as make the most keys the same.

    If nothing makes any the same, all are taken off: something else is before the keys besides.
    """
    ours, theirs = levels(names), levels(target)
    choices = [
        (len(set(one.values()) & set(two.values())), -number_one - number_two, one, two)
        for number_two, two in enumerate(theirs)
        for number_one, one in enumerate(ours)
    ]
    count, _, one, two = max(choices, key=lambda choice: choice[:2])
    return (one, two) if count else (ours[-1], theirs[-1])


_MOST_PREFIXES = 64
"""Prefixes that are tried. Of a file that has more, none stands out."""


def _without_prefix(
    names: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return both sides, one of them without the prefix that makes the most keys the same.

    It must do so for half of the other side, and no other prefix for as many: of a generator and a
    discriminator alike, none is the one that is meant.
    """
    sides = dict(names), dict(wanted)
    if set(names.values()) == set(wanted.values()):
        return sides
    have = len(set(names.values()) & set(wanted.values()))
    for number in (0, 1):
        side, other = sides[number], set(sides[1 - number].values())
        ranked = prefixes(side.values(), other)
        is_clear = len(ranked) == 1 or (ranked and ranked[0][1] > ranked[1][1])
        if is_clear and ranked[0][1] > have and 2 * ranked[0][1] >= len(other):
            bare = {key: name.removeprefix(ranked[0][0]) for key, name in side.items()}
            if len(set(bare.values())) == len(bare):
                return (bare, sides[1]) if number == 0 else (sides[0], bare)
    return sides


def prefixes(names: Collection[str], wanted: Collection[str]) -> list[tuple[str, int]]:
    """Return what stands before keys that are wanted without it, and how often; most first.

    >>> prefixes(["model.fc.weight", "model.fc.bias", "loss.scale"], {"fc.weight", "fc.bias"})
    [('model.', 2)]
    """
    found = Counter(
        name[: start + 1] for name in names for start in _dots(name) if name[start + 1 :] in wanted
    )
    return found.most_common(_MOST_PREFIXES)


def _dots(name: str) -> Iterator[int]:
    position = name.find(".")
    while position >= 0:
        yield position
        position = name.find(".", position + 1)


# --- Key by key ----------------------------------------------------------------------------------


def _alike(
    names: Mapping[str, str],
    wanted: Mapping[str, str],
    pairs: Mapping[str, str],
    likes: Callable[[str], Iterable[str]],
    like: Callable[[str], str],
) -> dict[str, str]:
    """Return pairs of keys that are left, wherever `like` of one of the file's is among `likes`."""
    if len(pairs) == len(wanted):
        return {}
    taken = set(pairs.values())
    left: dict[str, list[str]] = {}
    for key, name in names.items():
        if key not in taken:
            left.setdefault(like(name), []).append(key)
    found: dict[str, str] = {}
    for key, name in wanted.items():
        fits = [other for one in likes(name) for other in left.get(one, ())]
        if key not in pairs and len(fits) == 1:
            found[key] = fits[0]
    count = Counter(found.values())
    return {key: other for key, other in found.items() if count[other] == 1}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _once_called(name: str) -> list[str]:
    return [other for other, _ in other_names(name)]


def _renames_in(
    pairs: Mapping[str, str], names: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[str, ...]:
    found = {
        what: None
        for key, source in pairs.items()
        if names[source] != wanted[key]
        for other, what in other_names(wanted[key])
        if other == names[source]
    }
    return tuple(found)
