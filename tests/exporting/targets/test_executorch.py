"""ExecuTorch. It is not in the suite for all targets: to write one file takes ten seconds."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from exporting.samples import inputs, net, program
from torchkeep.errors import ExportRefused, MissingExtra, ProofFailed, WrongArgument
from torchkeep.exporting import ExecuTorch, export
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.targets import executorch


def test_a_file_takes_all_sizes_up_to_its_largest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("executorch")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    path = tmp_path / "net.pte"
    report = export(net(), path, example=inputs(), dynamic="sizes")
    assert [each.case for each in report.comparisons] == [
        *("batch 1", "batch 2", "batch 7"),
        "batch 2, height 56, width 88",
    ]
    assert all(each.relative < 1e-5 for each in report.comparisons)
    assert [each.original.batch_size for each in report.speeds] == [1, 16]
    assert tuple(capfd.readouterr()) == ("", ""), "it has written to the screen"
    assert not [*home.iterdir()], "it has left something at the user's home"

    with Session("executorch", path, threads=1) as session:
        assert session.metadata is None
        (found,) = session.run([inputs(32).numpy()])
        assert found.shape == (32, 3)
        with pytest.raises(ProofFailed, match="its runtime can't run it: RuntimeError: "):
            session.run([torch.zeros(33, 3, 56, 88).numpy()])

    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ProofFailed, match=r"its runtime (can't run it|was ended|ended)"):
        Session("executorch", path, threads=1)


def test_a_bound_that_pytorch_narrows_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If this passes without the switch, PyTorch has mended it, and the switch can go.
    pytest.importorskip("executorch")
    monkeypatch.setattr(executorch, "_keeping_bounds", contextlib.nullcontext)
    with pytest.raises(ExportRefused) as caught:
        ExecuTorch().write(program(net(), inputs(2)), tmp_path / "net.pte")
    assert "dimension 0 of x was to take any size up to 32, and ExecuTorch has it up to 15" in str(
        caught.value
    )
    assert "--dynamic none" in str(caught.value)


class _Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x.mean(1))


@pytest.mark.parametrize("dynamic", ["batch", "none"])
def test_an_operator_that_it_lacks_is_named(dynamic: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    with pytest.raises(ExportRefused) as caught:
        export(_Eigenvalues(), tmp_path / "net.pte", example=inputs(), dynamic=dynamic)
    assert "ExecuTorch has nothing for a part of the network (" in str(caught.value)
    assert "_linalg_eigh" in str(caught.value)
    assert ("try --dynamic none" in str(caught.value)) == (dynamic == "batch")
    assert "other target: --to onnx" in str(caught.value)


def test_a_largest_batch_below_what_is_proven_is_refused() -> None:
    with pytest.raises(WrongArgument, match=r"largest_batch is 8, .* at least 32, which the proof"):
        ExecuTorch(largest_batch=8)


def test_without_executorch_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(MissingExtra, match=r"needs executorch, .*torchkeep\[executorch\]"):
        export(net(), tmp_path / "net.pte", example=inputs())
