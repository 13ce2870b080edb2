"""What was noticed about a run, a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from torchkeep.errors import DamagedFile
from torchkeep.files import write_file
from torchkeep.formats.plain_json import parse_json
from torchkeep.training.diagnosis import Finding

FINDINGS_FILE = "findings.jsonl"


def add_findings(folder: Path, findings: Iterable[Finding]) -> list[Finding]:
    """Keep findings in a run's folder, and return those that were not there yet.

    Raises:
        SaveRefused: they can't be written.
    """
    before = read_findings(folder)
    known = {item.text for item in before}
    fresh = [item for item in findings if item.text not in known]
    if fresh:
        # The whole file: what is appended to a line that a crash has cut is lost with it.
        text = "".join(f"{json.dumps(item.to_json())}\n" for item in (*before, *fresh))
        write_file(folder / FINDINGS_FILE, text.encode(), durable=False, overwrite=True)
    return fresh


def forget_findings(folder: Path) -> None:
    """Have a run's folder tell of nothing, since the run begins anew."""
    (folder / FINDINGS_FILE).unlink(missing_ok=True)


def read_findings(folder: Path) -> list[Finding]:
    """Return what was noticed in a run so far; a line that a crash has cut is left out."""
    path = folder / FINDINGS_FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Finding(**parse_json(line)))
        except (TypeError, DamagedFile):
            continue
    return found
