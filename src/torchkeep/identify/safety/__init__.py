"""What loading a file with an ordinary unpickler could do, judged by the names in it.

* `data-only`: it names nothing but makers of plain values and tensors.
* `needs-trust`: it names classes or functions, or holds a program; loading it runs their code.
* `dangerous`: it names what no model needs (a shell, an import at run time), or plays tricks.
* `ambiguous`: different readers would see different contents, or nobody can say what it holds.

The verdict is about the file. torchkeep itself runs nothing in any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torchkeep.contents import Contents, Finding, Global
from torchkeep.errors import UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.identify.safety.lists import HEADERS, NO_MODELS, PROGRAMS, WEIGHTS_ONLY
from torchkeep.identify.safety.names import danger, is_dangerous, is_harmless
from torchkeep.identify.safety.values import Walk, findings_in_values, walk_values
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

Verdict = Literal["data-only", "needs-trust", "dangerous", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Safety:
    """The verdict on a file and its reasons."""

    verdict: Verdict
    """The worst that was found."""
    globals: tuple[str, ...]
    """Every name that the file mentions."""
    findings: tuple[Finding, ...]
    """What led to the verdict, the worst first."""
    weights_only: bool | None
    """Whether `torch.load(weights_only=True)` takes the file; None if it can't read the format."""
    blocked: tuple[str, ...]
    """The names that `torch.load(weights_only=True)` refuses."""


def judge(contents: Contents, limits: Limits = DEFAULT_LIMITS) -> Safety:
    """Return the verdict on a file from the names, the values and the oddities in it.

    Args:
        contents: what the file holds; the verdicts on its members count as well.
        limits: bounds of the work that a file may cause.
    """
    return _judge(contents, limits, 0)


def _judge(contents: Contents, limits: Limits, level: int) -> Safety:
    inner = [
        (_name_below(contents.path, member.path), _judge(member, limits, level))
        for member in contents.members
    ]
    walk = walk_values(contents)
    inner += _nested(contents, walk, limits, level)
    reasons = [*_of_the_file(contents), *findings_in_values(contents, walk, limits)]
    names = dict.fromkeys(map(str, contents.globals))
    for path, safety in inner:
        names.update(dict.fromkeys(safety.globals))
        reasons += [replace(item, place=_below(path, item.place)) for item in safety.findings]
    reasons = sorted(dict.fromkeys(reasons), key=lambda item: _ORDER.index(item.severity))
    blocked = tuple(name for name in map(str, contents.globals) if name not in WEIGHTS_ONLY)
    return Safety(
        verdict=_verdict(reasons),
        globals=tuple(names),
        findings=tuple(reasons),
        weights_only=_weights_only(contents, blocked),
        blocked=blocked,
    )


def _name_below(whole: Path, part: Path) -> str:
    return str(part.relative_to(whole)) if part.is_relative_to(whole) else str(part)


def _below(path: str, place: str) -> str:
    return f"{path}: {place}" if place and path else path or place


# --- Reasons -------------------------------------------------------------------------------------


def _of_the_file(contents: Contents) -> Iterator[Finding]:
    """Yield what a file's names, its kind and its reader's findings say."""
    for name in contents.globals:
        yield from _of_a_name(name)
    yield from (finding for finding in contents.findings if finding.severity != "note")
    if contents.container in PROGRAMS:
        text = PROGRAMS[contents.container]
        yield Finding("program", "needs-trust", "", text)
    problem = contents.problem
    is_header = isinstance(problem, UnsupportedContent) and contents.container in HEADERS
    if problem is not None and not is_header and contents.container not in NO_MODELS:
        yield Finding("unreadable", "ambiguous", "", problem.problem)


def _of_a_name(name: Global) -> Iterator[Finding]:
    if is_harmless(name):
        return
    path, reason = str(name), danger(name)
    if reason:
        text = f"loading the file would use {path}, which {reason}"
        yield Finding("dangerous-name", "dangerous", path, text)
    else:
        yield Finding("needs-class", "needs-trust", path, f"loading the file would run {path}")


_ORDER = ("dangerous", "ambiguous", "damaged", "needs-trust", "note")
_VERDICTS: dict[str, Verdict] = {
    "dangerous": "dangerous",
    "ambiguous": "ambiguous",
    "damaged": "ambiguous",
    "needs-trust": "needs-trust",
    "note": "data-only",
}


def _verdict(findings: list[Finding]) -> Verdict:
    """Return the verdict that findings, the worst first, amount to."""
    return _VERDICTS[findings[0].severity] if findings else "data-only"


# --- Pickles in a pickle -------------------------------------------------------------------------

_MOST_LEVELS = 8
_MOST_BLOBS = 1_000
_LOADERS = frozenset({"torch.storage._load_from_bytes"})
"""What loads its argument, and stands in honest files: tensors in a plain pickle."""


def _nested(
    contents: Contents, walk: Walk, limits: Limits, level: int
) -> list[tuple[str, Safety]]:
    """Return the verdicts on files that stand in a file's values.

    What nobody is known to load counts only if it is dangerous: bytes may look like a pickle.
    """
    verdicts = []
    for number, (given_to, data) in enumerate(walk.blobs[:_MOST_BLOBS]):
        path = contents.path / f"<bytes {number}>"
        is_loaded = str(given_to) in _LOADERS
        if level == _MOST_LEVELS:
            text = f"pickles in pickles, more than {_MOST_LEVELS} levels deep"
            deep = Finding("nested-pickles", "ambiguous", "", text)
            verdicts.append(("", Safety("ambiguous", (), (deep,), None, ())))
            break
        safety = _judge(examine_open(MemoryFile(data, path), limits), limits, level + 1)
        if is_loaded or safety.verdict == "dangerous":
            verdicts.append((path.name, safety))
    return verdicts


# --- torch.load(weights_only=True) ---------------------------------------------------------------


def _weights_only(contents: Contents, blocked: tuple[str, ...]) -> bool | None:
    if contents.container in _NEVER_WEIGHTS_ONLY:
        return False
    if contents.container not in _MAYBE_WEIGHTS_ONLY or contents.pickle_protocol is None:
        return None
    refused = any(
        finding.severity != "note" or finding.rule == "weights-only"
        for finding in contents.findings
    )
    return not blocked and not refused and contents.problem is None


_NEVER_WEIGHTS_ONLY = frozenset({"torchscript", "torchscript-lite", "torch-tar"})
_MAYBE_WEIGHTS_ONLY = frozenset({"torch-zip", "torch-legacy"})


__all__ = ["WEIGHTS_ONLY", "Safety", "Verdict", "danger", "is_dangerous", "is_harmless", "judge"]
