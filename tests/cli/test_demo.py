from __future__ import annotations

import sys
from pathlib import Path

import pytest

import torchkeep.demo
from torchkeep.cli import main
from torchkeep.errors import ProofFailed

pytest.importorskip("torchvision", reason="the demo needs torchvision")
pytest.importorskip("sklearn", reason="the demo needs scikit-learn")


def test_the_demo_gets_the_folder(monkeypatch, tmp_path: Path):
    folders = []
    monkeypatch.setattr(torchkeep.demo, "run", folders.append)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert main(["demo"]) == 0
    assert folders == [tmp_path, Path("torchkeep-demo")]


def test_a_proof_that_fails_exits_with_1(monkeypatch, capsys):
    def run(_out: Path) -> None:
        raise ProofFailed("the digests differ")

    monkeypatch.setattr(torchkeep.demo, "run", run)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "torchkeep: the digests differ.\n"


@pytest.mark.parametrize("module", ["torch", "torchvision", "sklearn", "PIL"])
def test_what_is_not_installed_is_named_with_the_command(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"]) == 11
    assert capsys.readouterr().err == (
        f"torchkeep: the demo needs {module}, not installed here. "
        "Install it with: pip install 'torchkeep[demo]'\n"
    )
