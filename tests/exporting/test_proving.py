"""What counts as doing what the original does."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporting.samples import Faulty, net
from torchkeep.errors import ProofFailed
from torchkeep.exporting import TOLERANCES, Onnx, export
from torchkeep.exporting.targets import Program


class Chaotic(torch.nn.Module):
    """Makes much of the smallest difference: each step doubles it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Linear(512, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.mix(x))
        for _ in range(17):
            x = 3.99 * x * (1 - x)
        return x


def _rows() -> torch.Tensor:
    return torch.randn(9, 512, generator=torch.Generator().manual_seed(1))


def test_a_file_that_is_as_near_to_float64_as_the_original_is_right(tmp_path: Path) -> None:
    strict = replace(TOLERANCES["float32"], or_as_exact=False)
    with pytest.raises(ProofFailed, match="it differs by up to"):
        export(Chaotic(), tmp_path / "net.onnx", example=_rows(), tolerance=strict)
    report = export(Chaotic(), tmp_path / "net.onnx", example=_rows())
    assert report.worst.relative > TOLERANCES["float32"].rtol
    assert report.worst.is_as_exact
    assert not report.worst.problem


def test_a_fault_in_such_a_network_is_found_all_the_same(tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        model = copy.deepcopy(program.model)
        with torch.no_grad():
            model.mix.bias += 1e-3
        return replace(program, model=model)

    target = Faulty(Onnx(), before)
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        export(Chaotic(), tmp_path / "net.file", target=target, example=_rows())


def test_outputs_are_compared_however_small_they_are(tmp_path: Path) -> None:
    class Tiny(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.net, self.scale = net(), scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) * self.scale

    images = torch.randn(9, 3, 24, 24)
    target = Faulty(Onnx(), lambda program: replace(program, model=Tiny(1.01e-12).eval()))
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        export(Tiny(1e-12).eval(), tmp_path / "net.file", target=target, example=images)
