"""Which tensor of a file fills which place of a model: a pure function of two descriptions.

Keys are compared without their wrappers' components, on both sides. What doesn't fit as it is
stays unmatched, unless an adaptation was asked for by name. The plan accounts for every key of
both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchkeep.contents import TensorEntry, Value
from torchkeep.errors import WrongArgument
from torchkeep.matching.adaptations import ADAPTATIONS
from torchkeep.matching.keys import AVERAGE_COUNTER, strip_wrappers, wrappers_in
from torchkeep.matching.slots import Slot


@dataclass(frozen=True, slots=True)
class Assignment:
    """One place of the model and the tensor that fills it."""

    target: str
    """The model's key."""
    source: str
    """The file's key."""
    adaptation: str | None = None
    """The name of what is done on the way, or None if nothing is."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A place and a tensor of the same name that don't fit."""

    target: str
    """The model's key."""
    source: str
    """The file's key."""
    found: str
    """What the file has, as text: `float32 [10, 512]`."""
    expected: str
    """What the model has."""
    can_cast: bool
    """Whether the adaptation `cast` would make it fit."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What will be done, and what stays unmatched on both sides. Every key is in one field."""

    assignments: tuple[Assignment, ...]
    """What fills what."""
    skipped: tuple[str, ...]
    """The model's keys that were asked to be left alone."""
    missing: tuple[str, ...]
    """The model's keys that the file has nothing for."""
    mismatched: tuple[Mismatch, ...]
    """Keys that both have, and that don't fit."""
    unexpected: tuple[str, ...]
    """The file's keys that the model has no place for, and that nobody asked to skip."""
    unused: tuple[str, ...]
    """The file's keys that were asked to be left alone, or whose place was."""
    stripped: tuple[str, ...]
    """Wrapper components that the file's keys have and the model's lack."""
    coverage: float
    """Elements of the model that are loaded, as a share of all; tied ones are counted once."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left over on either side except what was asked for."""
        return not (self.missing or self.mismatched or self.unexpected)


def plan(
    source: Mapping[str, TensorEntry | Value],
    target: Mapping[str, Slot],
    *,
    adapt: Mapping[str, str] | None = None,
) -> LoadPlan:
    """Return which entry fills which slot.

    Args:
        source: the file's state dict: tensors by key, and other values if it has any.
        target: the model's places by key.
        adapt: adaptations by key pattern, as in `fnmatch`; the first that matches counts. Patterns
            are compared with keys without wrapper components, the model's and (for `skip`) the
            file's.

    Raises:
        WrongArgument: an adaptation is unknown, or a pattern matches no key.
    """
    rules = dict(adapt or {})
    bare_source, bare_target = strip_wrappers(source), strip_wrappers(target)
    _check_rules(rules, [*bare_target.values(), *bare_source.values()])
    by_name = {bare: key for key, bare in bare_source.items()}
    draft = _Draft(source, target, rules)
    for key, name in bare_target.items():
        draft.place(key, name, by_name.get(name))
    draft.fill_tied()
    placed = set(bare_target.values())
    for key, name in bare_source.items():
        if name not in placed:
            # AveragedModel's counter belongs to the wrapper, not to the model in it.
            is_wanted = name != AVERAGE_COUNTER and _rule(rules, name) != "skip"
            (draft.unexpected if is_wanted else draft.unused).append(key)
    return draft.finish(_surplus(source, target))


class _Draft:
    """A plan on its way."""

    def __init__(
        self,
        source: Mapping[str, TensorEntry | Value],
        target: Mapping[str, Slot],
        rules: Mapping[str, str],
    ) -> None:
        self.source = source
        self.target = target
        self.rules = rules
        self.assignments: dict[str, Assignment] = {}
        self.skipped: list[str] = []
        self.missing: list[str] = []
        self.mismatched: list[Mismatch] = []
        self.unexpected: list[str] = []
        self.unused: list[str] = []

    def place(self, key: str, name: str, source_key: str | None) -> None:
        """Decide about one place of the model."""
        rule = _rule(self.rules, name)
        if rule == "skip":
            self.skipped.append(key)
            if source_key is not None:
                self.unused.append(source_key)
        elif source_key is None:
            self.missing.append(key)
        else:
            self._fit(key, source_key, rule)

    def _fit(self, key: str, source_key: str, rule: str | None) -> None:
        entry, slot = self.source[source_key], self.target[key]
        if slot.is_extra:
            self.assignments[key] = Assignment(key, source_key)
        elif not isinstance(entry, TensorEntry):
            found = f"a value of type {type(entry).__name__}"
            mismatch = Mismatch(key, source_key, found, describe(slot), can_cast=False)
            self.mismatched.append(mismatch)
        elif entry.shape == slot.shape and entry.dtype == slot.dtype:
            self.assignments[key] = Assignment(key, source_key)
        elif rule is not None and ADAPTATIONS[rule].fits(entry, slot):
            self.assignments[key] = Assignment(key, source_key, rule)
        else:
            found, expected = describe(entry), describe(slot)
            can_cast = ADAPTATIONS["cast"].fits(entry, slot)
            self.mismatched.append(Mismatch(key, source_key, found, expected, can_cast))

    def fill_tied(self) -> None:
        """Give a missing key what fills the same tensor under its other name."""
        filled = {self._first(key): step for key, step in self.assignments.items()}
        missing, self.missing = self.missing, []
        for key in missing:
            step = filled.get(self._first(key))
            if step is None:
                self.missing.append(key)
            else:
                self.assignments[key] = Assignment(key, step.source, step.adaptation)

    def _first(self, key: str) -> str:
        return self.target[key].tied_to or key

    def finish(self, stripped: tuple[str, ...]) -> LoadPlan:
        """Return the plan."""
        total = sum(slot.numel for slot in self.target.values() if slot.tied_to is None)
        filled = {self._first(key) for key in self.assignments}
        loaded = sum(self.target[key].numel for key in filled)
        in_order = [key for key in self.target if key in self.assignments]
        return LoadPlan(
            assignments=tuple(self.assignments[key] for key in in_order),
            skipped=tuple(self.skipped),
            missing=tuple(self.missing),
            mismatched=tuple(self.mismatched),
            unexpected=tuple(self.unexpected),
            unused=tuple(self.unused),
            stripped=stripped,
            coverage=loaded / total if total else float(bool(self.assignments)),
        )


def describe(thing: TensorEntry | Slot) -> str:
    """Return dtype and shape as text.

    >>> describe(Slot("float32", (10, 512)))
    'float32 [10, 512]'
    """
    return f"{thing.dtype} {list(thing.shape)}"


def _rule(rules: Mapping[str, str], name: str) -> str | None:
    return next((rule for pattern, rule in rules.items() if fnmatchcase(name, pattern)), None)


def _check_rules(rules: Mapping[str, str], names: list[str]) -> None:
    for pattern, rule in rules.items():
        if rule not in ADAPTATIONS:
            raise WrongArgument(
                f"adapt: {rule!r} is no adaptation", advice=f"Use one of {', '.join(ADAPTATIONS)}."
            )
        if not any(fnmatchcase(name, pattern) for name in names):
            raise WrongArgument(
                f"adapt: the pattern {pattern!r} matches no key of the model or the file",
                advice="Correct it, or leave it out.",
            )


def _surplus(source: Mapping[str, object], target: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(part for part in wrappers_in(source) if part not in wrappers_in(target))
