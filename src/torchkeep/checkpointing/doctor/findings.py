"""What was noticed about a run, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["damaged", "blocked", "inexact", "note"]
"""How bad a finding is: a checkpoint is of no use; the run can't go on here; it can, and may not
be bit for bit what it would have been; good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a run that its owner should know."""

    rule: str
    """A short fixed name: `versions`, `private-generator`, `disk`, ..."""
    severity: Severity
    """How bad it is."""
    place: str
    """A checkpoint's name, or an object's path in the program; empty for the run as a whole."""
    text: str
    """One sentence for a person."""
    advice: str = ""
    """What to do about it; may be empty."""

    def to_json(self) -> dict[str, Any]:
        """Return its fields as a plain dict (docs/cli.md)."""
        return asdict(self)
