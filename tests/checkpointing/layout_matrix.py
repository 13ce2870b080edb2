"""Saved by any number of ranks in any layout, and put back by any other: the same tensors.

`python tests/checkpointing/layout_matrix.py` tries all, and prints a table.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpointing.gang import run_gang
from checkpointing.layout_run import Place, main

LAYOUTS = (
    ("plain", 1),
    *(("ddp", ranks) for ranks in (1, 2, 3, 4)),
    *(("fsdp", ranks) for ranks in (1, 2, 3, 4)),
    ("hsdp", 4),
)

TIMEOUT_S = 240


def run(layout: str, ranks: int, folder: Path, saved: Sequence[str] = ()) -> dict:
    """Save a run on some ranks, or put back those that are saved; return the digests."""
    places = [Place(layout, ranks, rank) for rank in range(ranks)]
    statuses = run_gang(main, [(place, folder, tuple(saved)) for place in places], TIMEOUT_S)
    assert not any(statuses), f"{layout} on {ranks} ranks ended with {statuses}"
    return json.loads((folder / f"{places[0].name}{'-back' * bool(saved)}.json").read_text())


def try_all(folder: Path, layouts: Sequence[tuple[str, int]]) -> dict[tuple[str, str], list[str]]:
    """Return by layouts, of the save and of the load, which tensors differ."""
    saved = {f"{name}-{ranks}": run(name, ranks, folder) for name, ranks in layouts}
    differing = {}
    for name, ranks in layouts:
        for source, found in run(name, ranks, folder, list(saved)).items():
            expected = saved[source]
            keys = expected.keys() | found.keys()
            wrong = sorted(key for key in keys if expected.get(key) != found.get(key))
            differing[source, f"{name}-{ranks}"] = wrong
    return differing


def table() -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = try_all(Path(folder), LAYOUTS)
    names = [f"{name}-{ranks}" for name, ranks in LAYOUTS]
    print("| saved by, put back by | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    for source in names:
        cells = [str(len(found[source, target])) for target in names]
        print(f"| {source} | " + " | ".join(cells) + " |")
    num_wrong = sum(map(bool, found.values()))
    print(f"\n{len(found) - num_wrong} of {len(found)} pairs have the same tensors, bit for bit.")
    return bool(num_wrong)


if __name__ == "__main__":
    sys.exit(table())
