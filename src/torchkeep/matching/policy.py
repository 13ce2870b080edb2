"""What a user allows when a file and a model differ, as plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torchkeep.errors import WrongArgument
from torchkeep.matching.adaptations import ADAPTATIONS, NAMES, ClassNames
from torchkeep.matching.patterns import covers


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be done to make a file and a model fit. By default nothing may be."""

    rename: Mapping[str, str] = field(default_factory=dict)
    """New names for the file's keys by the old ones; see `renames.rename`."""
    adapt: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Adaptations by pattern (see `patterns.covers`); the first that matches a key counts. Several
    adaptations are tried in order. Patterns are compared with keys without wrapper components: the
    model's and, for `skip`, the file's."""
    allow: Collection[str] = ()
    """Adaptations that may be used anywhere, where they are usual and nothing else fits."""
    classes: ClassNames = field(default_factory=ClassNames)
    """What a classifier's outputs are called on both sides."""
    min_coverage: float = 1.0
    """The share of the model's parameters that must be loaded. Below 1, what is missing, unexpected
    or mismatched is left alone, and reported."""

    def __post_init__(self) -> None:
        """Raise WrongArgument if an adaptation is unknown or the coverage is no share."""
        for option, rules in (("rename", self.rename), ("adapt", self.adapt)):
            if not isinstance(rules, Mapping):
                raise WrongArgument(
                    f"{option} is of type {type(rules).__name__}, and should be a dict",
                    advice="Write {'old.*': 'new.*'} or {'fc.*': 'skip'}.",
                )
        for rule in self.adapt.values():
            _refuse_unknown(listed(rule), NAMES)
        _refuse_unknown(self.allow, ADAPTATIONS)
        if not 0 <= self.min_coverage <= 1:
            raise WrongArgument(
                f"min_coverage: {self.min_coverage!r} is no share of the model",
                advice="Give a number from 0 to 1.",
            )

    def rule_for(self, name: str) -> tuple[str, ...]:
        """Return the adaptations that were asked for a key."""
        for pattern, rule in self.adapt.items():
            if covers(pattern, name):
                return listed(rule)
        return ()

    def refuse_idle(self, names: Iterable[str]) -> None:
        """Raise WrongArgument if a pattern of `adapt` matches none of these names."""
        names = list(names)
        for pattern in self.adapt:
            if not any(covers(pattern, name) for name in names):
                raise WrongArgument(
                    f"adapt: the pattern {pattern!r} matches no key of the model or the file",
                    advice="Correct it, or leave it out.",
                )


def _refuse_unknown(names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise WrongArgument(
                f"{name!r} is no adaptation that can be asked for here",
                advice=f"Use one of {', '.join(known)}.",
            )


def listed(rule: str | Collection[str]) -> tuple[str, ...]:
    """Return a rule's adaptations, one or several, as several."""
    return (rule,) if isinstance(rule, str) else tuple(rule)
