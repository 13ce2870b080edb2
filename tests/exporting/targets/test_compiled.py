"""A `.pt2` that is compiled ahead of time: a minute of a C++ compiler, in `make test-export`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from exporting.samples import classifier, inputs
from torchkeep.errors import ExportRefused, ProofFailed
from torchkeep.exporting import Pt2, export, prove
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.targets.pt2 import is_compiled
from torchkeep.networks import build

pytestmark = pytest.mark.skipif(
    os.environ.get("TORCHKEEP_COMPILE") != "all" or shutil.which("g++") is None,
    reason="set TORCHKEEP_COMPILE=all, and have g++",
)


def test_a_compiled_file_does_what_the_original_does_and_says_its_classes(tmp_path: Path) -> None:
    network = classifier(tmp_path)
    path = tmp_path / "net.pt2"
    report = export(network, path, target=Pt2(compile=True), example=inputs(16))
    assert is_compiled(path)
    assert [each.case for each in report.comparisons] == ["batch 1", "batch 2", "batch 7"]
    assert report.worst.relative < 1e-5
    with Session("pt2", path, threads=1) as session:
        assert session.metadata is not None
        assert set(session.metadata) == {"arch", "classes", "preprocessing", "source", "torchkeep"}
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        prove(build("timm/test_resnet", num_classes=3), path, example=inputs(16))


def test_a_compiler_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", "false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    model = torch.nn.Sequential(torch.nn.Linear(8, 3), torch.nn.Tanh())
    path = tmp_path / "net.pt2"
    with pytest.raises(ExportRefused, match="it can't be compiled"):
        export(model, path, target=Pt2(compile=True), example=torch.randn(4, 8))
    assert not path.exists()
