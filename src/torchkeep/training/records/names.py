"""What the files of a run are called that others look for."""

from __future__ import annotations

SETTINGS_FILE = "settings.json"
BEST_FILE = "best.safetensors"
LAST_FILE = "last.safetensors"
REPORT_FILE = "report.html"
