"""ONNX: what holds of its files beside what holds of all (`test_targets.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exporting.samples import inputs, net, program
from torchkeep.errors import ExportRefused, WrongArgument
from torchkeep.exporting import Onnx, export
from torchkeep.exporting.targets.onnx import open_file


class Bessel(torch.nn.Module):
    """Has an operator that ONNX does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_an_output_that_is_a_number_is_refused_by_what_returns_tensors_alone(
    tmp_path: Path,
) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"twice": x * 2, "count": 3}

    with pytest.raises(ExportRefused, match=r"its output count is no tensor, and ONNX returns"):
        export(Counting(), tmp_path / "net.onnx", example=torch.ones(4, 3))


def test_the_output_that_is_a_number_is_named_whatever_is_before_it(tmp_path: Path) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"aux": None, "twice": x * 2, "count": 3}

    class Named(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"kind": "logits", "twice": x * 2}

    with pytest.raises(ExportRefused, match=r"its output count is no tensor, and ONNX returns"):
        export(Counting(), tmp_path / "net.onnx", example=torch.ones(4, 3))
    with pytest.raises(ExportRefused, match=r"one of its outputs is a text, and ONNX returns"):
        export(Named(), tmp_path / "net.onnx", example=torch.ones(4, 3))


def test_outputs_that_are_nothing_or_follow_from_sizes_are_no_hindrance(tmp_path: Path) -> None:
    class Sizes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"aux": None, "twice": x * 2, "rows": x.shape[0], "half": x.shape[0] / 2}

    report = export(Sizes(), tmp_path / "net.onnx", example=torch.randn(9, 3))
    assert {each.output for each in report.comparisons} == {"twice", "rows", "half"}


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match=r"ONNX has nothing for .*bessel_j0"):
        export(Bessel(), tmp_path / "net.onnx", example=torch.ones(4, 3))
    assert not [*tmp_path.iterdir()]


def test_an_opset_that_the_exporter_does_not_write_is_refused() -> None:
    with pytest.raises(WrongArgument, match="opset is 17, and PyTorch's exporter writes 18"):
        Onnx(opset=17)


def test_an_onnx_file_has_no_constants_that_nothing_uses(tmp_path: Path) -> None:
    class Pooling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3), keepdim=True)

    export(Pooling(), tmp_path / "net.onnx", example=inputs())
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [node.op_type for node in graph.node] == ["GlobalAveragePool"]
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used


def test_a_mean_over_an_image_is_a_pool_and_others_are_not(tmp_path: Path) -> None:
    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x.mean((-1, 2), keepdim=True), x.mean((2, 3)), x.mean((1, 2), keepdim=True)

    rows = torch.randn(2, 3, 4, 5)
    Onnx().write(program(Means(), rows, ("a", "b", "c")), tmp_path / "net.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert sorted(kinds) == ["GlobalAveragePool", "ReduceMean", "ReduceMean"]
    found = open_file(tmp_path / "net.onnx", threads=1).run([rows.numpy()])
    for one, two in zip(found, Means()(rows), strict=True):
        assert np.allclose(one, two.numpy(), atol=1e-6)


def test_a_mean_in_float64_is_no_pool_since_onnxruntime_has_none(tmp_path: Path) -> None:
    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double().mean((2, 3), keepdim=True)

    export(Exact(), tmp_path / "net.onnx", example=torch.randn(9, 3, 4, 5))


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
