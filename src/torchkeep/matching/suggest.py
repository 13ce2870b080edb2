"""What a user who meets a mismatch probably wants: a policy under which the plan is complete.

A suggestion is tried before it is made: `plan` is pure, and costs little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from torchkeep.contents import TensorEntry, Value
from torchkeep.errors import WrongArgument
from torchkeep.matching.adaptations import SKIP
from torchkeep.matching.explain import options
from torchkeep.matching.keys import strip_wrappers
from torchkeep.matching.names import prefixes
from torchkeep.matching.plan import LoadPlan, names_of, plan
from torchkeep.matching.policy import Policy
from torchkeep.matching.renames import first_rule
from torchkeep.matching.slots import Slot
from torchkeep.wording import share

_MAX_PATTERNS = 6
_MAX_RULES = 4
_MOST_COMPARED = 2000
_WORTH_LOADING = 0.05
"""The share of the model below which the file is taken for another network's."""

Source = Mapping[str, TensorEntry | Value]
Target = Mapping[str, Slot]


def advise(
    steps: LoadPlan,
    source: Source,
    target: Target,
    policy: Policy,
    call: str,
    looks_like: Callable[[], str] = str,
) -> str:
    """Return what to do about a plan that leaves something over: the exact call, if there is one.

    Args:
        steps: the plan.
        source: the file's state dict.
        target: the model's places.
        policy: what was allowed.
        call: the call that was made up to these options: `load_into(model, 'a.pth'`.
        looks_like: says what the file looks like, if it is nothing for this model.
    """
    parts = [] if steps.assignments else _parts_that_fit(source, target)
    if len(parts) > 1:
        choices = " or ".join(f"rename={{{f'{part}*'!r}: '*'}}" for part in parts[:3])
        return f"Several parts of the file fit this model: say which with {choices}."
    suggested = suggest(steps, source, target, policy)
    if suggested is None and steps.assignments:
        text = f"Only {share(steps.coverage)} of the model would be loaded: is it another network?"
        return f"{text} {looks_like()}".rstrip()
    if suggested is None:
        text = "Nothing matches: the file is another model's, or a part of one."
        return f"{text} {looks_like()}".rstrip()
    better = plan(source, target, suggested)
    given = {"rename": dict(suggested.rename), "adapt": dict(suggested.adapt)}
    given |= {"allow": tuple(policy.allow), "classes": policy.classes.model}
    does = "To load the rest" if better.skipped or better.unused else "To load it"
    if suggested.rename != policy.rename:
        does = "If they are the same under other names"
    return f"{does} ({share(better.coverage)} of the model): {call}{options(given)})."


def suggest(steps: LoadPlan, source: Source, target: Target, policy: Policy) -> Policy | None:
    """Return a policy under which the plan is complete; None if none is worth it."""
    rules = {} if policy.rename else _guess_renames(steps, source, target)
    for tried in (replace(policy, rename=rules), policy) if rules else (policy,):
        left = _planned(source, target, tried)
        adapt = None if left is None else _adaptations(left, source, target)
        if adapt is not None:
            better = replace(tried, adapt=adapt | dict(policy.adapt))
            done = _planned(source, target, better)
            if done is not None and done.is_complete and done.coverage > _WORTH_LOADING:
                return better
    return None


def _planned(source: Source, target: Target, policy: Policy) -> LoadPlan | None:
    try:
        return plan(source, target, policy)
    except WrongArgument:  # a guess that makes two keys one
        return None


def _parts_that_fit(source: Source, target: Target) -> list[str]:
    """Return the prefixes behind which the file has most of the model, as many keys behind each."""
    wanted = set(strip_wrappers(target).values())
    ranked = prefixes(strip_wrappers(source).values(), wanted)
    most = ranked[0][1] if ranked else 0
    return [part for part, count in ranked if count == most and 2 * most > len(wanted)]


# --- Adaptations ---------------------------------------------------------------------------------


def _adaptations(
    steps: LoadPlan, source: Source, target: Target
) -> dict[str, str | tuple[str, ...]] | None:
    """Return patterns that cover what is left over, and no other key; None if it takes too many."""
    called = names_of(target)
    names = strip_wrappers(source) | called
    fitting: dict[str, str | tuple[str, ...]] = {
        called[item.target]: item.would_fit[0] if len(item.would_fit) == 1 else item.would_fit
        for item in steps.mismatched
        if item.would_fit
    }
    useless = [item.target for item in steps.mismatched if not item.would_fit]
    patterns = list(patterns_of([*steps.missing, *steps.unexpected, *useless], names))
    if set(fitting.values()) == {"cast"}:
        fitting = {"*": "cast"}
    if len(patterns) + len(fitting) > _MAX_PATTERNS:
        return None
    return {**dict.fromkeys(patterns, SKIP), **fitting}


def patterns_of(left_over: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Return patterns that cover the keys left over, and no other.

    >>> patterns_of(["fc.weight", "fc.bias"], {key: key for key in ("a.w", "fc.weight", "fc.bias")})
    ['fc.*']
    """
    left = dict.fromkeys(names[key] for key in left_over)
    kept = {folder for name in names.values() if name not in left for folder in _folders(name)}
    patterns: dict[str, None] = {}
    for name in left:
        outer = next((folder for folder in _folders(name) if folder not in kept), None)
        patterns[f"{outer}.*" if outer else name] = None
    return list(patterns)


def _folders(name: str) -> Iterator[str]:
    """Yield the modules that a key lies in, outermost first.

    >>> list(_folders("layer.0.weight"))
    ['layer', 'layer.0']
    """
    position = name.find(".")
    while position >= 0:
        yield name[:position]
        position = name.find(".", position + 1)


# --- Renames -------------------------------------------------------------------------------------


def _guess_renames(steps: LoadPlan, source: Source, target: Target) -> dict[str, str]:
    """Return rules that bring together what is missing and what is unexpected, of the same shapes.

    Two keys speak for a rule if they differ in one run of components. The rule that most speak for
    comes first.
    """
    names = strip_wrappers(source)
    waiting: dict[tuple[object, str], list[str]] = {}
    for key in steps.missing[:_MOST_COMPARED]:
        name = target[key].name or key
        waiting.setdefault((target[key].shape, name.rpartition(".")[2]), []).append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for key in steps.unexpected[:_MOST_COMPARED]:
        entry = source[key]
        if isinstance(entry, TensorEntry):
            near = waiting.get((entry.shape, names[key].rpartition(".")[2]), [])
            votes.update({_difference(names[key], name) for name in near[:50]})
    rules: dict[str, str] = {}
    for (old, new), _ in votes.most_common():
        if old not in rules and new not in rules.values() and len(rules) < _MAX_RULES:
            rules[old] = new
    used = {first_rule(names[key], rules) for key in steps.unexpected}
    return {old: new for old, new in rules.items() if old in used}


def _difference(old: str, new: str) -> tuple[str, str]:
    """Return the rule that two names speak for.

    >>> _difference("layers.0.fc.weight", "blocks.0.fc.weight")
    ('layers.*', 'blocks.*')
    >>> _difference("layers.0.attn.weight", "layers.0.attention.weight")
    ('*.attn.*', '*.attention.*')
    """
    one, two = old.split("."), new.split(".")
    start = 0
    while start < min(len(one), len(two)) and one[start] == two[start]:
        start += 1
    end = 0
    while end < min(len(one), len(two)) - start and one[-1 - end] == two[-1 - end]:
        end += 1
    middle = [part[start : len(part) - end] for part in (one, two)]
    rules = [".".join(["*"] * bool(start) + part + ["*"] * bool(end)) for part in middle]
    return rules[0], rules[1]
