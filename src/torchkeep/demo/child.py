"""What the demo's child processes share: options, and the report that the parent reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from torchkeep.demo.digits import Settings


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every child takes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    options.add_argument("--report", type=Path, required=True, help="JSON-lines file to append to")
    for item in fields(Settings):
        kind = float if item.name == "least_accuracy" else int
        flag = "--" + item.name.replace("_", "-")
        options.add_argument(flag, type=kind, default=item.default)
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that were given as options."""
    return Settings(**{item.name: getattr(options, item.name) for item in fields(Settings)})


def as_options(settings: Settings) -> list[str]:
    """Return the options that give a child these settings."""
    given = {item.name: getattr(settings, item.name) for item in fields(Settings)}
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None
    ]


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
