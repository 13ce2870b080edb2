"""What the writer of a file knows about it: the truth that the report compares with.

Each script writes its files and says beside each what it is. The facts lie in `expected.jsonl` in
the script's folder, a line per file, so that the report needs none of the frameworks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS_NAME = "expected.jsonl"

FACTS = frozenset(
    "container role framework optimizers state_dicts schedulers scalers rng verdict stand_in "
    "classes optimizer_class code".split()
)
"""What can be said of a file. Left out means that nobody knows better than torchkeep.

`role`, `container`, `framework` and `verdict` are compared as they are (`framework=None` says that
none is to be named). `optimizers` are families in the file's order, `state_dicts` the roles of the
state dicts by name, `schedulers`, `scalers` and `rng` paths. `classes` are class paths of pickled
modules. `optimizer_class` is the class of a rare optimizer, whose family may be unknown and must
not be another. `code` says that the file holds Python code, so that no verdict is too strict.
`stand_in` says that the file was put together by hand to a documented layout.
"""


def expecting(path: Path, **facts: Any) -> Path:
    """Note what a file is, and return its path."""
    if unknown := facts.keys() - FACTS:
        raise ValueError(f"nothing compares {unknown}")
    folder = next(parent for parent in path.parents if (parent / FACTS_NAME).exists())
    with (folder / FACTS_NAME).open("a") as file:
        file.write(json.dumps({"path": str(path.relative_to(folder)), **facts}) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def start(folder: Path) -> None:
    """Make a script's folder, with nothing in it."""
    folder.mkdir(parents=True)
    (folder / FACTS_NAME).touch()


def facts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of a script's files by path."""
    lines = (folder / FACTS_NAME).read_text().splitlines()
    facts = [json.loads(line) for line in lines]
    return {item.pop("path"): item for item in facts}
