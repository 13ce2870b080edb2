"""What a training run keeps of the deployment files that were made of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torchkeep.errors import DamagedFile
from torchkeep.exporting.proof.parity import agreements
from torchkeep.exporting.report import Exported
from torchkeep.files import write_file
from torchkeep.formats.plain_json import parse_json
from torchkeep.report import Deployment, add_deployments

EXPORTS_FILE = "exports.jsonl"
_REPORT_FILE = "report.html"


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
    if (run / _REPORT_FILE).is_file():
        add_deployments(run / _REPORT_FILE, known)


def read_exports(run: Path) -> list[Deployment]:
    """Return the deployment files of a run; a line that can't be read is left out."""
    path = run / EXPORTS_FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Deployment(**parse_json(line)))
        except (TypeError, DamagedFile):
            continue
    return found


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
