"""What the demo's child processes tell their parent: a file that both know, a line per event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Report:
    """A JSON-lines file: one event per line, written at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def add(self, event: str, **values: Any) -> None:
        """Append an event."""
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events reported so far; a line that is being written is left out."""
    if not path.exists():
        return []
    return list(_whole_lines(path.read_text(encoding="utf-8")))


def _whole_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
