"""What a person needs to know about a plan that leaves something over, and the call that helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from torchkeep.matching.keys import strip_wrappers
from torchkeep.matching.plan import LoadPlan, Mismatch

_MAX_ROWS = 8
_MAX_PATTERNS = 6
_MAX_CANDIDATES = 500


def summarize(plan: LoadPlan) -> str:
    """Return what is left over, in one line: `2 missing, 1 mismatched`."""
    counts = {
        "missing in the file": plan.missing,
        "with another shape or dtype": plan.mismatched,
        "unexpected in the file": plan.unexpected,
    }
    return ", ".join(f"{len(keys)} {what}" for what, keys in counts.items() if keys)


def table(plan: LoadPlan) -> str:
    """Return every kind of left-over with its keys, long lists cut; nearest names beside them."""
    return "\n".join(
        line
        for title, rows in (
            ("missing in the file", _near(plan.missing, plan.unexpected)),
            ("with another shape or dtype", [_row(item) for item in plan.mismatched]),
            ("unexpected in the file", list(plan.unexpected)),
        )
        for line in _section(title, rows)
    )


def _row(mismatch: Mismatch) -> str:
    return f"{mismatch.target}: {mismatch.found} in the file, {mismatch.expected} in the model"


def _section(title: str, rows: list[str]) -> Iterator[str]:
    if rows:
        yield f"  {title} ({len(rows)}):"
        yield from (f"    {row}" for row in rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        yield f"    ... and {len(rows) - _MAX_ROWS} more"


def _near(missing: Iterable[str], candidates: Collection[str]) -> list[str]:
    """Return the missing keys; those that will be shown have the file's nearest name beside."""
    pool = list(candidates)[:_MAX_CANDIDATES]
    rows = []
    for number, key in enumerate(missing):
        near = get_close_matches(key, pool, n=1) if number < _MAX_ROWS else []
        rows.append(f"{key} (the file has {near[0]})" if near else key)
    return rows


def advise(plan: LoadPlan, source: Collection[str], target: Collection[str], call: Call) -> str:
    """Return what to do next, with the exact call if there is one.

    Args:
        plan: the plan that leaves something over.
        source: the file's keys.
        target: the model's keys.
        call: the call that was made.
    """
    uncastable = [item for item in plan.mismatched if not item.can_cast]
    if not plan.assignments and len(uncastable) == len(plan.mismatched):
        return _advise_on_nothing(source, target, call)
    left_over = [*plan.missing, *plan.unexpected, *(item.target for item in uncastable)]
    patterns = _patterns(left_over, strip_wrappers(target) | strip_wrappers(source))
    if len(patterns) > _MAX_PATTERNS:
        return f"Only {plan.coverage:.0%} of the model would be loaded: is it another network?"
    rules = dict.fromkeys(patterns, "skip") | dict(call.adapt)
    does = "load the rest"
    if len(uncastable) < len(plan.mismatched):
        rules["*"] = "cast"
        does = "load the rest, cast to the model's dtypes" if patterns else "cast"
    return f"To {does}: {call.with_adapt(rules)}."


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `load_into`, to be printed with what would make it work."""

    path: str
    """The file."""
    select: str = "auto"
    """The state dict that was asked for."""
    adapt: Mapping[str, str] = field(default_factory=dict)
    """The adaptations that were asked for."""
    assign: bool = False
    """Whether the model's tensors were to be replaced."""

    def with_adapt(self, adapt: Mapping[str, str]) -> str:
        """Return the call as source text, with these adaptations."""
        return self._text("model", f", adapt={dict(adapt)}")

    def with_model(self, model: str) -> str:
        """Return the call as source text, with this expression for the model."""
        return self._text(model, f", adapt={dict(self.adapt)}" if self.adapt else "")

    def _text(self, model: str, adapt: str) -> str:
        select = "" if self.select == "auto" else f", select={self.select!r}"
        assign = ", assign=True" if self.assign else ""
        return f"load_into({model}, {self.path!r}{select}{adapt}{assign})"


def _advise_on_nothing(source: Collection[str], target: Collection[str], call: Call) -> str:
    names, wanted = set(strip_wrappers(source).values()), set(strip_wrappers(target).values())
    firsts = Counter(name.partition(".")[0] for name in names if "." in name)
    prefix, count = firsts.most_common(1)[0] if firsts else ("", 0)
    inner = {name.removeprefix(f"{prefix}.") for name in names}
    if 2 * count > len(names) and 2 * len(inner & wanted) > len(wanted):
        text = call.with_model(f"torch.nn.ModuleDict({{{prefix!r}: model}})")
        return f"The file's keys match after their first part, {prefix!r}: {text}."
    return "Nothing matches: the file is another model's, or a part of one."


def _patterns(left_over: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Return patterns that cover the keys left over, and no other.

    >>> _patterns(["fc.weight", "fc.bias"], {key: key for key in ("a.w", "fc.weight", "fc.bias")})
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
