"""The epochs of a run, as files that other programs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchkeep.files import write_file


def write_history(folder: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Write `history.csv` and `history.jsonl`, a row per epoch; what was there is replaced."""
    table = list(rows)
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    lines = "".join(f"{json.dumps(row)}\n" for row in table)
    for name, content in (("history.csv", text.getvalue()), ("history.jsonl", lines)):
        write_file(folder / name, content.encode(), durable=False, overwrite=True)
