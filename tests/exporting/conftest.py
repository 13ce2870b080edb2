"""Files are proven as always, but quicker: nothing here asks how fast they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import forked
from torchkeep.exporting.proof import session, timing


@pytest.fixture(autouse=True)
def _timed_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "_ROUND_S", 0.002)


@pytest.fixture(autouse=True)
def _started_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = SimpleNamespace(**vars(session.subprocess) | {"Popen": forked.popen})
    monkeypatch.setattr(session, "subprocess", quick)
