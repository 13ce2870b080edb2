"""What was noticed about a training, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torchkeep.wording import printable

Severity = Literal["error", "warning", "note"]
"""How bad a finding is: training can't work so; it will probably be worse for it; good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a training that its owner should know."""

    check: str
    """A short fixed name: `labels-range`, `initial-loss`, `not-moving`, ..."""
    severity: Severity
    """How bad it is."""
    text: str
    """What was seen, with figures: one sentence for a person."""
    advice: str = ""
    """What to try."""

    def to_json(self) -> dict[str, Any]:
        """Return its fields as a plain dict."""
        return asdict(self)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings by severity; those of one severity stay in their order."""
    return sorted(findings, key=lambda item: _ORDER.index(item.severity))


_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


def listed(names: Sequence[object], most: int = 3) -> str:
    """Return names as a text that stays short.

    >>> listed(["a"]), listed(list("abcde"))
    ('a', 'a, b, c and 2 more')
    """
    shown = ", ".join(printable(str(name)) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
