"""Inspect files in a process of its own, and report what they are and what it took."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchkeep.identify import inspect


def main() -> None:
    """Inspect the files named, and report a line for each on the report file."""
    options = argparse.ArgumentParser(description="Inspect files.")
    options.add_argument("--report", type=Path, required=True)
    options.add_argument("files", type=Path, nargs="+")
    given = options.parse_args()
    import json

    with given.report.open("a", encoding="utf-8") as report:
        for path in given.files:
            found = inspect(path)
            row = {
                "event": "inspected",
                "path": str(path),
                "role": found.role,
                "summary": found.summary,
                "verdict": found.safety.verdict,
                "torch_loaded": "torch" in sys.modules,
            }
            report.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
