"""What a person needs to know about a plan: in one line, as a table, and as the call that helps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches

from torchkeep.matching.plan import Assignment, LoadPlan, Mismatch
from torchkeep.wording import counted, share

_MAX_ROWS = 8
_MAX_CANDIDATES = 500


def summarize(plan: LoadPlan) -> str:
    """Return what is left over, in one line: `2 missing in the file`."""
    counts = {
        "missing in the file": plan.missing,
        "with another shape or dtype": plan.mismatched,
        "unexpected in the file": plan.unexpected,
    }
    return ", ".join(f"{len(keys)} {what}" for what, keys in counts.items() if keys)


def overview(plan: LoadPlan) -> str:
    """Return what would be done, in a few lines, and everything that is not a plain copy."""
    tensors = [step for step in plan.assignments if not step.is_extra]
    adapted = [step for step in tensors if step.adaptations]
    counts = [
        f"{counted(len(tensors) - len(adapted), 'tensor')} as they are",
        *(f"{len(keys)} {what}" for what, keys in _other_counts(plan, adapted).items() if keys),
    ]
    lines = [plan.why] if plan.why else []
    lines += [f"{', '.join(counts)}; {share(plan.coverage)} of the model's parameters"]
    lines += naming(plan)
    lines += _section("adapted", [_adapted_row(step) for step in adapted])
    lines += _section("kept as the model has it", plan.skipped)
    lines += _section("given fresh values", plan.reset)
    return "\n".join([*lines, *filter(None, [table(plan), plan.advice])])


def _other_counts(plan: LoadPlan, adapted: Collection[object]) -> dict[str, Collection[object]]:
    return {
        "adapted": adapted,
        "with extra state": [step for step in plan.assignments if step.is_extra],
        "skipped": plan.skipped,
        "reset": plan.reset,
        "unused in the file": plan.unused,
        "missing in the file": plan.missing,
        "that don't fit": plan.mismatched,
        "unexpected in the file": plan.unexpected,
    }


def naming(plan: LoadPlan) -> list[str]:
    """Return a sentence for each way in which the file's keys and the model's are called apart."""
    texts = {
        "dropped from the file's names": plan.stripped,
        "added to the file's names": plan.added,
        "names of another time": plan.renamed,
    }
    told = [f"{what}: {', '.join(parts)}" for what, parts in texts.items() if parts]
    if plan.converted:
        told.append(f"{counted(len(plan.converted), 'key')} converted by the model's own code")
    return told


def table(plan: LoadPlan) -> str:
    """Return every kind of left-over with its keys, long lists cut; nearest names beside them."""
    return "\n".join(
        line
        for title, rows in (
            ("missing in the file", _near(plan.missing, plan.unexpected)),
            ("with another shape or dtype", [_mismatch_row(item) for item in plan.mismatched]),
            ("unexpected in the file", plan.unexpected),
        )
        for line in _section(title, rows)
    )


def _adapted_row(step: Assignment) -> str:
    return f"{step.target}: {', then '.join(map(str, step.adaptations))}"


def _mismatch_row(mismatch: Mismatch) -> str:
    text = f"{mismatch.target}: {mismatch.found} in the file, {mismatch.expected} in the model"
    return f"{text}; {' and '.join(mismatch.would_fit)} would do" if mismatch.would_fit else text


def _section(title: str, rows: Collection[str]) -> Iterator[str]:
    if rows:
        yield f"  {title} ({len(rows)}):"
        yield from (f"    {row}" for row in list(rows)[:_MAX_ROWS])
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


def options(named: Mapping[str, object]) -> str:
    """Return keyword arguments as source text, those that are empty left out.

    >>> options({"select": "ema", "adapt": {}})
    ", select='ema'"
    """
    return "".join(f", {name}={value!r}" for name, value in named.items() if value)
