"""`torchkeep export`: what a person sees, what a program gets, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import torchkeep
from exporting.samples import classifier, images, net
from torchkeep.cli import main


def test_an_export_is_told_in_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, data = classifier(tmp_path), images(tmp_path / "data")
    out = tmp_path / "net.onnx"
    assert main(["export", str(file), str(out), "--data", str(data)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    made = "(onnx, float32, of best.safetensors)"
    assert lines[0] == f"{out}: proven to do what the original does {made}"
    assert lines[1] == f"  with 3 images of {data}"
    assert lines[2] == "  takes x, float32 [batch, 3, 24, 24]"
    assert lines[3] == "  its own recipe prepares 3 images as the original's does"
    assert lines[5].split() == "outputs differ by on average cosine same class".split()
    assert [line.split()[:2] for line in lines[6:9]] == [["batch", size] for size in "127"]
    assert all(line.endswith("100.0%") for line in lines[6:9])
    assert any(line.startswith("  accuracy") and line.endswith("of 3 images") for line in lines)
    assert max(map(len, lines[4:])) <= 80
    assert said.err == ""


def test_a_program_gets_json_and_a_second_call_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = classifier(tmp_path), tmp_path / "net.ts"
    call = ["export", str(file), str(out), "--optimize", "--json"]
    assert main(call) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "net.ts.json").read_text())
    assert document["options"]["optimize"] is True
    assert document["is_real"] is False
    assert main(call) == 8
    assert "there is something already" in capsys.readouterr().err
    assert main([*call, "--overwrite"]) == 0


def test_a_file_that_is_there_is_proven_and_an_older_one_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = classifier(tmp_path), tmp_path / "net.ts"
    assert main(["export", str(file), str(out)]) == 0
    before = out.stat().st_mtime_ns
    assert main(["export", str(file), str(out), "--prove"]) == 0
    assert out.stat().st_mtime_ns == before
    state = torchkeep.load(file)
    state["fc.bias"] += 0.1
    metadata = {key: torchkeep.inspect(file).contents.metadata[key] for key in ("arch",)}
    capsys.readouterr()
    torchkeep.save(state, tmp_path / "newer.safetensors", metadata=metadata)
    arch = ["--arch", "timm/test_resnet", "--num-classes", "3"]
    example = tmp_path / "rows.npy"
    np.save(example, np.random.default_rng(0).random((9, 3, 24, 24), np.float32))
    newer = [str(tmp_path / "newer.safetensors"), str(out), *arch, "--example", str(example)]
    assert main(["export", *newer, "--prove"]) == 1
    assert "it does not do what the original does" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--to", "onnx", "--lite"], 12, "the target onnx has no --lite. Leave it out."),
        (["--to", "tflite"], 12, "there is no target called 'tflite'. Choose one of onnx, "),
        (["--to", "pt2", "--precision", "int2"], 12, "the target pt2 has no precision 'int2'"),
        (["--to", "torchscript", "--by", "hand"], 12, "there is no TorchScript by 'hand'"),
        (["--to", "pt2", "--rtol", "-1"], 12, "rtol is -1.0, and has to be at least 0"),
        (["--to", "pt2", "--example", "none.npy"], 3, "none.npy: there is no such file"),
    ],
)
def test_what_fits_nothing_is_said(
    words: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(net(), tmp_path / "net.pth")
    file = classifier(tmp_path)
    assert main(["export", str(file), str(tmp_path / "out.file"), *words]) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.file").exists()


def test_a_whole_model_of_ones_own_class_says_how_it_is_let_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(net(), tmp_path / "net.pth")
    assert main(["export", str(tmp_path / "net.pth"), str(tmp_path / "net.ts")]) == 7
    told = " ".join(capsys.readouterr().err.split())
    assert "exporting.samples.Net. If they can be imported here" in told
    assert "you trust them: --trust exporting. Without them: torchkeep rescue " in told


def test_a_file_that_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "none.pth", "none.onnx"]) == 3
    assert "none.pth: there is no such file" in capsys.readouterr().err
