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
from typing import Literal

from torchkeep.contents import Contents, Finding, Global, name_within
from torchkeep.errors import UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.containers import CONTAINERS
from torchkeep.identify.safety.lists import (
    RELEASES,
    WEIGHTS_ONLY,
)
from torchkeep.identify.safety.names import (
    danger,
    is_dangerous,
    is_harmless,
    weights_only_allows,
)
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
    """Whether `torch.load(weights_only=True)` of the newest PyTorch takes the file; None if no
    release reads the format."""
    weights_only_by_release: dict[str, bool]
    """The same for each release that the verdict knows, the oldest first; empty for None."""
    blocked: tuple[str, ...]
    """The names that `torch.load(weights_only=True)` of the newest PyTorch refuses."""


def judge(contents: Contents, limits: Limits = DEFAULT_LIMITS, *, is_part: bool = False) -> Safety:
    """Return the verdict on a file from the names, the values and the oddities in it.

    Args:
        contents: what the file holds; the verdicts on its members count as well.
        limits: bounds of the work that a file may cause.
        is_part: whether it lies in an archive or a folder. What is no model (a text, a pointer) is
            harmless there; asked for by itself, nobody can tell what should have been in its place.
    """
    return _judge(contents, limits, 0, is_part=is_part)


def _judge(contents: Contents, limits: Limits, level: int, *, is_part: bool = True) -> Safety:
    names = _homes(contents)
    walk = walk_values(contents)
    reasons = [
        *_of_names(names, contents.container),
        *_of_the_file(contents, is_part=is_part),
        *findings_in_values(contents, walk, limits),
    ]
    for member in contents.members:
        safety = _judge(member, limits, level)
        path = name_within(contents.path, member.path)
        reasons += [_within(path, item) for item in safety.findings if item.rule not in _OF_NAMES]
    for safety in _nested(contents, walk, limits, level):
        names.update(dict.fromkeys(safety.globals, ""))
        reasons += safety.findings
    reasons = sorted(dict.fromkeys(reasons), key=lambda item: _ORDER.index(item.severity))
    takes = _weights_only(contents)
    return Safety(
        verdict=_verdict(reasons),
        globals=tuple(dict.fromkeys(map(str, names))),
        findings=tuple(reasons),
        weights_only=takes.get(RELEASES[-1]),
        weights_only_by_release=takes,
        blocked=_blocked(contents, RELEASES[-1]),
    )


def _within(path: str, finding: Finding) -> Finding:
    return replace(finding, place=f"{path}: {finding.place}" if finding.place else path)


# --- Reasons -------------------------------------------------------------------------------------


def _homes(contents: Contents) -> dict[Global | str, str]:
    """Return the names that a file and its members mention, each with the first that does."""
    homes: dict[Global | str, str] = dict.fromkeys(contents.globals, "")
    for member in contents.members:
        path = name_within(contents.path, member.path)
        for name, below in _homes(member).items():
            if not homes.get(name):
                homes[name] = f"{path}: {below}" if below else path
    return homes


_OF_NAMES = frozenset({"dangerous-name", "needs-class"})


def _of_names(homes: dict[Global | str, str], container: str) -> Iterator[Finding]:
    is_defined = CONTAINERS[container].defines_script_names
    for name, home in homes.items():
        if not isinstance(name, Global) or is_harmless(name):
            continue
        if is_defined and name.module.partition(".")[0] == "__torch__":
            continue  # the program defines it, and is a reason by itself
        path, reason = str(name), danger(name)
        where = f"loading {home}" if home else "loading the file"
        if reason:
            text = f"{where} would use {path}, which {reason}"
            yield Finding("dangerous-name", "dangerous", path, text)
        else:
            yield Finding("needs-class", "needs-trust", path, f"{where} would run {path}")


def _of_the_file(contents: Contents, *, is_part: bool) -> Iterator[Finding]:
    """Yield what a file's kind and its reader's findings say."""
    for finding in contents.findings:
        is_elsewhere = contents.container == "pickle" and finding.rule == "missing-storage"
        if finding.severity != "note" and not is_elsewhere:
            yield finding
    container = CONTAINERS[contents.container]
    is_said = any(finding.rule in ("program", "source-code") for finding in contents.findings)
    if container.runs and not is_said:
        yield Finding("program", "needs-trust", "", container.runs)
    problem = contents.problem
    is_header = isinstance(problem, UnsupportedContent) and container.is_told_by_header
    if problem is None or is_header:
        return
    if container.use != "none":
        yield Finding("unreadable", "ambiguous", "", problem.problem)
    elif not is_part:
        yield Finding("no-model", "ambiguous", "", problem.problem)


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
_MOST_BLOBS = 10_000
_LOADERS = frozenset({"torch.storage._load_from_bytes"})
"""What loads its argument, and stands in honest files: tensors in a plain pickle."""


def _nested(contents: Contents, walk: Walk, limits: Limits, level: int) -> Iterator[Safety]:
    """Yield the verdicts on files that stand in a file's values.

    What nobody is known to load counts only if it is dangerous: bytes may look like a pickle.
    """
    if walk.blobs and level == _MOST_LEVELS:
        yield _not_looked_into(f"pickles in pickles, more than {_MOST_LEVELS} levels deep")
        return
    if len(walk.blobs) > _MOST_BLOBS:
        yield _not_looked_into(f"more than {_MOST_BLOBS:,} values that look like files")
    for loader, data in walk.blobs[:_MOST_BLOBS]:
        inner = examine_open(MemoryFile(data, contents.path), limits)
        safety = _judge(inner, limits, level + 1)
        if loader in _LOADERS or safety.verdict == "dangerous":
            yield safety


def _not_looked_into(text: str) -> Safety:
    finding = Finding("nested-pickles", "ambiguous", "", text)
    return Safety("ambiguous", (), (finding,), None, {}, ())


# --- torch.load(weights_only=True) ---------------------------------------------------------------


def _weights_only(contents: Contents) -> dict[str, bool]:
    """Return by release whether it takes a file; nothing, if it isn't of its formats."""
    is_taken = CONTAINERS[contents.container].weights_only
    if is_taken is False:
        return dict.fromkeys(RELEASES, False)
    if is_taken is None or contents.pickle_protocol is None:
        return {}
    refused = contents.problem is not None or any(
        finding.severity != "note" or finding.rule == "weights-only"
        for finding in contents.findings
    )
    return {release: not refused and not _blocked(contents, release) for release in RELEASES}


def _blocked(contents: Contents, release: str) -> tuple[str, ...]:
    names = map(str, contents.globals)
    return tuple(name for name in names if not weights_only_allows(name, release))


__all__ = [
    "RELEASES",
    "WEIGHTS_ONLY",
    "Safety",
    "Verdict",
    "danger",
    "is_dangerous",
    "is_harmless",
    "judge",
]
