"""Exports are timed as always, and for a moment only: nothing here asks how fast they are."""

from __future__ import annotations

import pytest

from torchkeep.exporting.proof import timing


@pytest.fixture(autouse=True)
def _timed_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "_ROUND_S", 0.002)
