"""OpenVINO: what holds of its files beside what holds of all (`test_targets.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from exporting.samples import inputs, net, program
from torchkeep.errors import ExportRefused, MissingExtra, ProofFailed, WrongArgument
from torchkeep.exporting import Onnx, OpenVino, export, prove
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.targets import Port


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose batch and sizes vary, and which says something of itself."""
    path = tmp_path_factory.mktemp("openvino") / "net.xml"
    dims = ({0: "batch", 2: "height", 3: "width"},)
    OpenVino().write(program(net(), inputs(2), dynamic=dims, metadata=METADATA), path)
    return path


METADATA = {
    "classes": json.dumps(["a<b>&'c'", 'the "owl"', "猫\n"], ensure_ascii=False),
    "raw": "two\nlines\t<end>",
}


def test_what_it_says_of_itself_is_read_back_to_the_letter(written: Path) -> None:
    with Session("openvino", written, threads=1) as session:
        assert session.metadata == METADATA


def test_what_may_vary_is_told_by_name_and_the_rest_as_numbers(
    written: Path, tmp_path: Path
) -> None:
    with Session("openvino", written, threads=1) as session:
        assert session.inputs == (Port("x", "float32", ("batch", 3, "height", "width")),)
    OpenVino().write(program(net(), inputs(2), dynamic=({2: "rows"},)), tmp_path / "rows.xml")
    with Session("openvino", tmp_path / "rows.xml", threads=1) as session:
        assert session.inputs == (Port("x", "float32", (2, 3, "dim_2", 24)),)
        assert session.metadata == {}


def test_the_process_that_runs_it_has_no_torch_and_tells_nobody(
    written: Path, tmp_path: Path
) -> None:
    code = """
import sys
from pathlib import Path
from torchkeep.exporting.targets.openvino import open_file
open_file(Path(sys.argv[1]), threads=1)
print(sorted({name.partition(".")[0] for name in sys.modules} & {
    "torch", "onnx", "openvino", "openvino_telemetry"}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", code, str(written)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "['openvino']\n"
    assert not [*tmp_path.iterdir()], "it has left something at the user's home"


def test_telemetry_that_was_imported_before_stays_so(written: Path, tmp_path: Path) -> None:
    code = """
import sys
import openvino_telemetry
from torchkeep.exporting.targets.openvino import _openvino
_openvino()
assert sys.modules["openvino_telemetry"] is openvino_telemetry
"""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not [*tmp_path.iterdir()]


def test_weights_keep_their_precision_unless_asked_otherwise(tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.xml", tmp_path / "half.xml"
    first = export(net(), whole, example=inputs())
    second = export(net(), half, target=OpenVino(precision="float16"), example=inputs())
    nbytes = [sum(each.numel() for each in net().parameters()) * size for size in (4, 2)]
    found = [path.with_suffix(".bin").stat().st_size for path in (whole, half)]
    # The constants of shapes are there as well; BatchNorm is a part of the convolution.
    assert found == pytest.approx(nbytes, abs=120)
    assert max(each.relative for each in first.comparisons) < 1e-6
    assert 1e-6 < max(each.relative for each in second.comparisons) < 1e-3
    assert [each.name for each in first.files] == ["whole.bin", "whole.xml"]
    assert prove(net(), whole, example=inputs()).files == first.files


def test_int8_is_a_quarter_and_does_what_onnxruntime_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 64, 3), nn.Hardswish(), nn.Conv2d(64, 64, 3, 2), nn.ReLU()
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 9))
    rows = inputs(16)
    sizes, found = {}, {}
    for name, target in (
        ("whole.xml", OpenVino()),
        ("small.xml", OpenVino(precision="int8")),
        ("small.onnx", Onnx(precision="int8")),
    ):
        target.write(program(model, rows, metadata=METADATA), tmp_path / name)
        with Session(target.name, tmp_path / name, threads=1) as session:
            (found[name],) = session.run([rows.numpy()])
            assert session.metadata is not None
            assert session.metadata.items() >= METADATA.items()
        sizes[name] = sum(each.stat().st_size for each in tmp_path.glob(f"{name[:-4]}.bin"))
    assert sizes["small.xml"] < 0.3 * sizes["whole.xml"]
    scale = abs(found["whole.xml"]).max()
    assert 0 < abs(found["small.xml"] - found["whole.xml"]).max() < 0.05 * scale
    assert abs(found["small.xml"] - found["small.onnx"]).max() < 0.02 * scale


def test_a_file_without_its_weights_is_refused(written: Path, tmp_path: Path) -> None:
    alone = tmp_path / "net.xml"
    alone.write_bytes(written.read_bytes())
    with pytest.raises(ProofFailed, match=r"weights data in bin file or bin file cannot be found"):
        Session("openvino", alone, threads=1)
    weights = written.with_suffix(".bin").read_bytes()
    alone.with_suffix(".bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(
        ProofFailed, match=r"^its runtime can't run it: RuntimeError: Incorrect weights in bin file"
    ):
        Session("openvino", alone, threads=1)


class _Determinant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(x.mean(1))


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused) as caught:
        export(_Determinant(), tmp_path / "net.xml", example=inputs())
    assert "OpenVINO has nothing for a part of the network: " in str(caught.value)
    assert "No conversion rule found for operations: Det" in str(caught.value)
    assert "or --to onnx" in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_a_name_that_openvino_would_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongArgument, match=r"net\.ov: OpenVINO reads .* called \.xml alone"):
        export(net(), tmp_path / "net.ov", target="openvino", example=inputs())


def test_without_openvino_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"target openvino needs openvino, .*torchkeep\[export"):
        export(net(), tmp_path / "net.xml", example=inputs())
