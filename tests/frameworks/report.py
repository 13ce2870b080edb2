"""Inspect the files of a corpus and compare with what their writers know."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torchkeep
from frameworks.beside_torch import FORMATS, differences
from frameworks.expected import facts_of
from torchkeep.errors import FileProblem

ALARMS = ("dangerous", "ambiguous")
MOST_ALARMS = 0.01
"""The part of all files that may be alarms: raw dumps of memory are of no known kind."""
NO_MODELS = frozenset(
    ".csv .ini .jinja .json .jsonl .log .md .memmap .png .py .txt .yaml .yml".split()
)
"""Suffixes of what frameworks write beside models; these files are not looked at by themselves."""


@dataclass
class Row:
    """One file, or one folder that is a model."""

    path: str
    container: str = ""
    role: str = ""
    framework: str | None = None
    verdict: str = ""
    summary: str = ""
    reasons: list[str] = field(default_factory=list)
    """What led to the verdict, where it is an alarm."""
    problem: str = ""
    """The error of torchkeep, if it ended in one."""
    wrong: list[str] = field(default_factory=list)
    """Where it differs from the truth."""
    stand_in: bool = False
    code: bool = False
    """Whether Python code is in it, so that no verdict is a false alarm."""
    seconds: float = 0.0
    beside_torch: list[str] | None = None
    """Where it differs from what torch.load makes of the file; None if nobody compared."""

    @property
    def false_alarm(self) -> bool:
        return bool(self.problem) or (self.verdict in ALARMS and not self.code)


def show(
    out: Path, names: list[str], *, every: bool, as_json: bool, beside_torch: bool = False
) -> int:
    """Print the table; return 1 if anything in it is wrong, or too many are alarms."""
    folders = [out / name for name in names if (out / name).is_dir()]
    rows = [row for folder in folders for row in rows_of(folder, beside_torch=beside_torch)]
    if as_json:
        for row in rows:
            print(json.dumps(asdict(row)))
        return 0
    for row in rows:
        if every or row.false_alarm or row.wrong or row.beside_torch:
            _print(row)
    alarms = [row for row in rows if row.false_alarm]
    wrong = [row for row in rows if row.wrong or row.beside_torch]
    print(f"\n{len(rows)} files of {len({row.path.partition('/')[0] for row in rows})} scripts")
    print(
        f"{sum(row.stand_in for row in rows)} stand-ins, {sum(row.code for row in rows)} with code"
    )
    print(f"false alarms: {len(alarms)} ({100 * len(alarms) / max(len(rows), 1):.2f} %)")
    print(f"differing from the truth: {sum(bool(row.wrong) for row in rows)}")
    compared = [row.beside_torch for row in rows if row.beside_torch is not None]
    print(f"differing from torch.load: {sum(map(bool, compared))} of {len(compared)} compared")
    print(f"slowest: {max((row.seconds, row.path) for row in rows)}" if rows else "nothing")
    for title, key in (
        ("container", "container"),
        ("framework", "framework"),
        ("verdict", "verdict"),
    ):
        counts = Counter(str(getattr(row, key)) for row in rows)
        print(f"by {title}: {', '.join(f'{name} {n}' for name, n in counts.most_common())}")
    return int(bool(wrong) or len(alarms) > MOST_ALARMS * len(rows))


def _print(row: Row) -> None:
    mark = "!" if row.false_alarm else "?" if row.wrong else " "
    print(
        f"{mark} {row.path:60} {row.container:17} {row.role:10} "
        f"{row.framework or '-':18} {row.verdict}"
    )
    print(f"      {row.summary}" if row.summary else f"      {row.problem}")
    shown = row.reasons[:4] + [f"and {len(row.reasons) - 4} more"] * (len(row.reasons) > 4)
    for text in (*shown, *(f"should be {text}" for text in row.wrong + (row.beside_torch or []))):
        print(f"      * {text}")


def rows_of(folder: Path, *, beside_torch: bool = False) -> Iterator[Row]:
    """Yield a row for each file of a script and for each folder that its truth names."""
    facts = facts_of(folder)
    files = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in NO_MODELS and path.name != "last_checkpoint"
    }
    for name in sorted(files | facts.keys()):
        yield _row(folder, name, facts.get(name, {}), beside_torch)


def _row(folder: Path, name: str, facts: dict[str, Any], beside_torch: bool) -> Row:
    row = Row(
        path=f"{folder.name}/{name}",
        stand_in=facts.get("stand_in", False),
        code=facts.get("code", False),
    )
    start = time.perf_counter()
    try:
        found = torchkeep.inspect(folder / name)
        found.to_json(tensors=True)
    except FileProblem as problem:
        row.problem = f"{type(problem).__name__}: {problem}"
        return row
    except Exception as problem:  # a bug of torchkeep's: one line of the table, not its end
        row.problem = f"BUG {type(problem).__name__}: {problem}"
        return row
    row.seconds = time.perf_counter() - start
    row.container, row.role, row.summary = found.container, found.role, found.summary
    row.framework, row.verdict = found.framework, found.safety.verdict
    if row.verdict in ALARMS:
        row.reasons = [
            f"{item.severity} {item.rule} at {item.place!r}: {item.text}"
            for item in found.safety.findings
            if item.severity in ALARMS
        ]
    row.wrong = list(_differences(found, facts))
    if beside_torch and row.container in FORMATS:
        row.beside_torch = list(differences(folder / name, found))
    return row


def _is_kind_of(families: list[str | None], cls: str) -> bool:
    names = [family.lower() for family in families if family and " of " not in family]
    return all(name in cls.lower() for name in names)


def _differences(found: Any, facts: dict[str, Any]) -> Iterator[str]:
    seen = {
        "container": found.container,
        "role": found.role,
        "framework": found.framework,
        "verdict": found.safety.verdict,
        "optimizers": [item.family for item in found.optimizers],
        "state_dicts": {item.name: item.role for item in found.state_dicts},
        "schedulers": list(found.schedulers),
        "scalers": list(found.scalers),
        "rng": list(found.rng),
        "classes": [node.class_path for _, node in found.modules],
    }
    cls = facts.get("optimizer_class")
    if cls and not _is_kind_of(seen["optimizers"], cls):
        yield f"optimizer {cls} or none, is {seen['optimizers']}"
    for key, truth in facts.items():
        if key in seen and seen[key] != truth:
            yield f"{key} {truth!r}, is {seen[key]!r}"
