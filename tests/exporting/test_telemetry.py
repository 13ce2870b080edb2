"""Runtimes that tell their makers what they run do not when a file is proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporting.samples import inputs, net
from torchkeep.exporting import export


def test_onnxruntime_leaves_nothing_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it may report to Microsoft it keeps an identifier and a queue in `~/.cache`."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CI", "TF_BUILD", "GITHUB_ACTIONS", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    export(net(), tmp_path / "net.onnx", example=inputs())
    assert not [*home.rglob("*")]
