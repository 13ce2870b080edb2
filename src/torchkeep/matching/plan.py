"""Which tensor of a file fills which place of a model: a pure function of two descriptions.

`names` says which keys are the same. What doesn't fit as it is stays unmatched, unless an
adaptation was asked for or allowed. The plan accounts for every key of both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torchkeep.contents import TensorEntry, Value
from torchkeep.matching.adaptations import RESET, SKIP, Adapted, adapt
from torchkeep.matching.keys import AVERAGE_COUNTER, WRAPPERS, strip_wrappers
from torchkeep.matching.names import MatchedNames, match_names
from torchkeep.matching.policy import Policy
from torchkeep.matching.slots import Slot

_BATCH_COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that files from before PyTorch 0.4.1 lack; torch gives it the model's."""


_COMPUTED = "values that the model's own loading code, run by load_state_dict alone, may change"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One place of the model and the tensor that fills it."""

    target: str
    """The model's key."""
    source: str
    """The file's key."""
    adaptations: tuple[Adapted, ...] = ()
    """What is done on the way, in order; nothing, if it is copied as it is."""
    is_extra: bool = False
    """Whether it is a module's extra state, and no tensor."""


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
    would_fit: tuple[str, ...] = ()
    """The adaptations that would make it fit, besides `skip`."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a model's own loading code does to the keys of a file; see `loading.conversions`."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """The names in the model, by the file's key."""
    dropped: frozenset[str] = frozenset()
    """The file's keys that it throws away."""
    kept: frozenset[str] = frozenset()
    """The names in the model of what keeps its own values."""
    computed: frozenset[str] = frozenset()
    """The names in the model of what it computes from what the file has under them."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What will be done, and what stays unmatched on both sides. Every key is in one field."""

    assignments: tuple[Assignment, ...]
    """What fills what, in the model's order."""
    skipped: tuple[str, ...]
    """The model's keys that were asked to be left alone, and counters that old files lack."""
    reset: tuple[str, ...]
    """The model's keys that get fresh values."""
    missing: tuple[str, ...]
    """The model's keys that the file has nothing for."""
    mismatched: tuple[Mismatch, ...]
    """Keys that both have, and that don't fit."""
    unexpected: tuple[str, ...]
    """The file's keys that the model has no place for, and that nobody asked to skip."""
    unused: tuple[str, ...]
    """The file's keys that were asked to be left alone, or whose place was."""
    stripped: tuple[str, ...]
    """Components that the file's keys have and the model's lack: wrappers, and other prefixes."""
    added: tuple[str, ...]
    """Components that the model's keys have and the file's lack."""
    renamed: tuple[str, ...]
    """What PyTorch has renamed between the two, such as `weight_norm`."""
    converted: tuple[str, ...]
    """The file's keys that the model's own loading code renames or drops."""
    coverage: float
    """Parameters that get their values from the file, counted in elements, as a share of all; tied
    ones count once, and buffers don't, unless there is nothing else."""
    min_coverage: float
    """The share that the policy asks for."""
    state_dict: str = ""
    """The state dict that was chosen: its path in the file, empty for the root."""
    why: str = ""
    """Why that one, in one sentence."""
    advice: str = ""
    """What to do if something is left over."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left over on either side except what was asked for."""
        return not (self.missing or self.mismatched or self.unexpected)

    @property
    def is_plain(self) -> bool:
        """Whether the model gets all that it has from the file, and nothing is adapted."""
        is_adapted = any(step.adaptations for step in self.assignments)
        return self.is_complete and not (is_adapted or self.skipped or self.reset)

    @property
    def is_allowed(self) -> bool:
        """Whether it may be carried out."""
        return self.is_complete or (
            self.min_coverage < 1 and self.min_coverage <= self.coverage > 0
        )

    def __str__(self) -> str:
        from torchkeep.matching.explain import overview

        return overview(self)


def plan(
    source: Mapping[str, TensorEntry | Value],
    target: Mapping[str, Slot],
    policy: Policy | None = None,
    conversion: Conversion | None = None,
) -> LoadPlan:
    """Return which entry fills which slot.

    Args:
        source: the file's state dict: tensors by key, and other values if it has any.
        target: the model's places by key.
        policy: what may be done to make the two fit; nothing if it is None.
        conversion: what the model's own code does to the file's keys.

    Raises:
        WrongArgument: a pattern matches no key, or a rename makes two keys one.
    """
    policy, conversion = policy or Policy(), conversion or Conversion()
    called = names_of(target)
    names = match_names(source, called, policy.rename, conversion.renamed)
    policy.refuse_idle([*called.values(), *names.source.values()])
    draft = _Draft(source, target, policy, conversion)
    for key, name in called.items():
        draft.place(key, name, names.pairs.get(key))
    draft.fill_tied()
    draft.leave_counters()
    placed = set(names.pairs.values())
    for key, name in names.source.items():
        if key not in placed:
            # AveragedModel's counter belongs to the wrapper, not to the model in it.
            is_wanted = name != AVERAGE_COUNTER and SKIP not in policy.rule_for(name)
            is_wanted = is_wanted and key not in conversion.dropped
            (draft.unexpected if is_wanted else draft.unused).append(key)
    return draft.finish(names)


def names_of(target: Mapping[str, Slot]) -> dict[str, str]:
    """Return the name of each place without wrappers: as it is known, or as its key has it."""
    names = {key: slot.name for key, slot in target.items() if slot.name is not None}
    return names if len(names) == len(target) else strip_wrappers(target) | names


class _Draft:
    """A plan on its way."""

    def __init__(
        self,
        source: Mapping[str, TensorEntry | Value],
        target: Mapping[str, Slot],
        policy: Policy,
        conversion: Conversion,
    ) -> None:
        self.source = source
        self.target = target
        self.policy = policy
        self.conversion = conversion
        self.assignments: dict[str, Assignment] = {}
        self.skipped: list[str] = []
        self.reset: list[str] = []
        self.missing: list[str] = []
        self.mismatched: list[Mismatch] = []
        self.unexpected: list[str] = []
        self.unused: list[str] = []

    def place(self, key: str, name: str, source_key: str | None) -> None:
        """Decide about one place of the model."""
        rule = self.policy.rule_for(name)
        left_alone = next((step for step in rule if step in (SKIP, RESET)), None)
        wanted = [step for step in rule if step not in (SKIP, RESET)]
        is_computed = name in self.conversion.computed
        if source_key is not None and not is_computed and (wanted or not left_alone):
            found = self._fit(key, name, source_key, wanted)
            if found is not None:
                self.assignments[key] = found
                return
        if left_alone is None and source_key is None and name in self.conversion.kept:
            left_alone = SKIP
        if left_alone:
            (self.skipped if left_alone == SKIP else self.reset).append(key)
            self.unused += [source_key] if source_key is not None else []
        elif source_key is None:
            self.missing.append(key)
        elif is_computed:
            expected = describe(self.target[key])
            self.mismatched.append(Mismatch(key, source_key, _COMPUTED, expected))
        else:
            self.mismatched.append(self._mismatch(key, source_key))

    def _fit(self, key: str, name: str, source_key: str, wanted: list[str]) -> Assignment | None:
        entry, slot = self.source[source_key], self.target[key]
        if slot.is_extra:
            return Assignment(key, source_key, is_extra=True)
        if not isinstance(entry, TensorEntry) or entry.layout != "strided":
            return None
        classes = self.policy.classes
        steps = adapt(entry, slot, wanted, classes)
        if steps is None:
            steps = adapt(entry, slot, [*wanted, *self.policy.allow], classes, called=name)
        return None if steps is None else Assignment(key, source_key, steps)

    def _mismatch(self, key: str, source_key: str) -> Mismatch:
        entry, slot = self.source[source_key], self.target[key]
        if not isinstance(entry, TensorEntry):
            found = f"a value of type {type(entry).__name__}"
            return Mismatch(key, source_key, found, describe(slot))
        fits = what_fits(entry, slot, key, self.policy)
        return Mismatch(key, source_key, describe(entry), describe(slot), fits)

    def fill_tied(self) -> None:
        """Give a missing key what fills the same tensor under its other name."""
        filled = {self._first(key): step for key, step in self.assignments.items()}
        missing, self.missing = self.missing, []
        for key in missing:
            step = filled.get(self._first(key))
            if step is None:
                self.missing.append(key)
            else:
                self.assignments[key] = Assignment(key, step.source, step.adaptations)

    def leave_counters(self) -> None:
        """Let the model keep BatchNorm's counters if the file is too old to have any."""
        if not any(key.endswith(_BATCH_COUNTER) for key in self.source):
            old = [key for key in self.missing if key.rpartition(".")[2] == _BATCH_COUNTER]
            self.missing = [key for key in self.missing if key not in set(old)]
            self.skipped += old

    def _first(self, key: str) -> str:
        return self.target[key].tied_to or key

    def finish(self, names: MatchedNames) -> LoadPlan:
        """Return the plan."""
        steps = [self.assignments[key] for key in self.target if key in self.assignments]
        return LoadPlan(
            assignments=tuple(steps),
            skipped=tuple(self.skipped),
            reset=tuple(self.reset),
            missing=tuple(self.missing),
            mismatched=tuple(self.mismatched),
            unexpected=tuple(self.unexpected),
            unused=tuple(self.unused),
            stripped=_surplus((step.source, step.target) for step in steps),
            added=_surplus((step.target, step.source) for step in steps),
            renamed=names.renamed,
            converted=(*self.conversion.renamed, *self.conversion.dropped),
            coverage=self._coverage(steps),
            min_coverage=self.policy.min_coverage,
        )

    def _coverage(self, steps: Iterable[Assignment]) -> float:
        counted = {k: s for k, s in self.target.items() if not (s.tied_to or s.is_extra)}
        parameters = {key: slot for key, slot in counted.items() if not slot.is_buffer}
        counted = parameters or counted
        filled = {
            first: self.target[first].numel - sum(item.num_kept for item in step.adaptations)
            for step in steps
            if (first := self._first(step.target)) in counted
        }
        total = sum(slot.numel for slot in counted.values())
        return sum(filled.values()) / total if total else float(bool(filled))


def what_fits(entry: TensorEntry, slot: Slot, called: str, policy: Policy) -> tuple[str, ...]:
    """Return the adaptations that would make a tensor fit, as few as do, the usual first."""
    for names in _WORTH_A_TRY:
        if adapt(entry, slot, names, policy.classes, called=called) is not None:
            return names
    return ()


_WORTH_A_TRY = (
    ("cast",),
    ("resample",),
    ("resample", "cast"),
    ("classes",),
    ("classes", "cast"),
    ("sum-channels",),
    ("average-channels",),
    ("sum-channels", "cast"),
    ("average-channels", "cast"),
)
"""What is worth a suggestion. The first rows of a classifier rarely are."""


def describe(thing: TensorEntry | Slot) -> str:
    """Return dtype and shape as text.

    >>> describe(Slot("float32", (10, 512)))
    'float32 [10, 512]'
    """
    return f"{thing.dtype} {list(thing.shape)}"


def _surplus(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the components that the first of two keys has and the second lacks, in order.

    Where components were renamed, only those of wrappers are named: the others have no name alone.
    """
    found: dict[str, None] = {}
    for one, other in pairs:
        if one != other:
            left = Counter(other.split("."))
            more = [part for part in one.split(".") if not _take(left, part)]
            is_longer = all(part in WRAPPERS for part in left.elements())
            found |= dict.fromkeys(part for part in more if is_longer or part in WRAPPERS)
    return tuple(found)


def _take(parts: Counter[str], part: str) -> bool:
    if not parts[part]:
        return False
    parts[part] -= 1
    return True
