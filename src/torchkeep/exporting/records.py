"""What a training run keeps of the deployment files that were made of it."""

from __future__ import annotations

import json
import math
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import Any

from torchkeep.errors import DamagedFile
from torchkeep.exporting.proof.parity import agreements
from torchkeep.exporting.report import Exported
from torchkeep.files import write_file
from torchkeep.formats.plain_json import parse_json
from torchkeep.report import Deployment, add_deployments
from torchkeep.training.records.names import REPORT_FILE

EXPORTS_FILE = "exports.jsonl"
_LARGEST = 1 << 60
"""Of a number: of bytes, of seconds, of times as fast."""


def record_export(run: Path, report: Exported) -> None:
    """Keep an export in a run's folder, and tell of it in the run's report if there is one.

    Raises:
        SaveRefused: the folder can't be written to.
        DamagedFile: the report is none of ours.
    """
    path = run / EXPORTS_FILE
    mine = _deployment(report)
    known = [*(one for one in read_exports(run) if one.name != mine.name), mine]
    text = "".join(f"{json.dumps(asdict(one))}\n" for one in known)
    write_file(path, text.encode(), overwrite=True)
    if (run / REPORT_FILE).is_file():
        add_deployments(run / REPORT_FILE, known)


def read_exports(run: Path) -> list[Deployment]:
    """Return the deployment files of a run; a line that can't be read is left out."""
    path = run / EXPORTS_FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            one = Deployment(**parse_json(line, allow_nan=True))
        except (TypeError, DamagedFile):
            continue
        if all(_is_fit(field, getattr(one, field.name)) for field in fields(one)):
            found.append(one)
    return found


def _is_fit(field: Field[Any], value: object) -> bool:
    """Whether a value can be that of a field: a text, or a number that is none below zero."""
    kind = str(field.type)  # it is a text: annotations are not evaluated
    if kind == "str" or value is None:
        return isinstance(value, str) or (value is None and "None" in kind)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= _LARGEST or value == math.inf


def _deployment(report: Exported) -> Deployment:
    accuracy, first = report.accuracy, report.speeds[0]
    shares = [same / count for same, count in agreements(report.comparisons).values() if count]
    return Deployment(
        name=report.path.name,
        kind=f"{report.target}, {report.options.get('precision', 'float32')}",
        nbytes=report.nbytes,
        difference=report.worst.relative,
        agreement=min(shares, default=None),
        accuracy=accuracy.exported / accuracy.num_samples if accuracy else None,
        original_accuracy=accuracy.original / accuracy.num_samples if accuracy else None,
        latency_s=first.exported.median_s,
        speedup=first.ratio,
        proven_with=report.example,
    )
