"""The epochs of a run: what was measured in each, which is the best, and files of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path

from torchkeep.files import write_file

METRIC = "val_accuracy"
"""What the best epoch is told by."""


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch of the highest accuracy, of the lowest loss among several; 0 if none is."""
    order = {at: (row[METRIC], -row["val_loss"], -at) for at, row in enumerate(history)}
    return max(order, key=lambda at: order[at], default=0)


def with_times(
    history: Iterable[Mapping[str, float]], times: Mapping[int, Mapping[str, float]]
) -> list[dict[str, float]]:
    """Return the rows of a history, each with what its epoch took, as far as that is known.

    Args:
        history: a row per epoch, as `Checkpointer.history` has them.
        times: by epoch, as `Times.rows` has them.
    """
    return [{**row, **times.get(epoch, {})} for epoch, row in enumerate(history)]


def json_line(row: Mapping[str, object]) -> str:
    """Return a line of JSON, with null for numbers that JSON has not: NaN, and the infinite."""
    plain = {
        name: None if isinstance(x, float) and not isfinite(x) else x for name, x in row.items()
    }
    return f"{json.dumps(plain, allow_nan=False)}\n"


def write_history(folder: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Write `history.csv` and `history.jsonl`, a row per epoch; what was there is replaced."""
    table = list(rows)
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    lines = "".join(json_line(row) for row in table)
    for name, content in (("history.csv", text.getvalue()), ("history.jsonl", lines)):
        write_file(folder / name, content.encode(), durable=False, overwrite=True)
