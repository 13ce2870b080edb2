"""`torchkeep match`: the plan of a load, on the screen and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from torchkeep.cli import main

torchvision = pytest.importorskip("torchvision")
RESNET = ["--arch", "torchvision/resnet18"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("match") / "theirs.pth"
    model = torchvision.models.resnet18(num_classes=10)
    torch.save({"model_state_dict": torch.nn.DataParallel(model).state_dict(), "epoch": 3}, path)
    return path


def test_without_a_network_it_is_the_one_that_the_file_looks_like(theirs: Path, capsys) -> None:
    assert main(["match", str(theirs)]) == 0
    assert capsys.readouterr().out == (
        f"{theirs} fits: torchvision/resnet18\n"
        "'model_state_dict' is its only state dict.\n"
        "122 tensors as they are; 100.0% of the model's parameters\n"
        "dropped from the file's names: module\n"
    )
    assert main(["match", str(theirs), "--num-classes", "5"]) == 9


def test_what_does_not_fit_is_shown_with_the_call_that_loads_the_rest(theirs: Path, capsys) -> None:
    assert main(["match", str(theirs), *RESNET, "--num-classes", "5"]) == 9
    output = capsys.readouterr().out
    assert output.startswith(f"{theirs} does not fit as it is: torchvision/resnet18\n")
    assert "120 tensors as they are, 2 that don't fit; 99.9% of the model's parameters" in output
    assert "    fc.weight: float32 [10, 512] in the file, float32 [5, 512] in the model\n" in output
    assert f"load_into(model, {str(theirs)!r}, adapt={{'fc.*': 'skip'}})." in output


def test_options_are_those_of_a_load(theirs: Path, capsys) -> None:
    given = [*RESNET, "--num-classes", "5", "--adapt", "fc.*=resample,slice"]
    given = ["--arch", "timm/resnet18", "--input-channels", "1", "--num-classes", "5"]
    given += ["--adapt", "fc.*=resample,slice", "--allow", "sum-channels", "--allow", "cast"]
    assert main(["match", str(theirs), *given]) == 0
    output = capsys.readouterr().out
    assert "    conv1.weight: sum-channels (3 input channels added up)\n" in output
    assert "    fc.bias: slice (the first 5 of 10 rows)\n" in output
    given = [*RESNET, "--num-classes", "5", "--min-coverage", "0.9"]
    assert main(["match", str(theirs), *given]) == 0
    assert "fits in part, as allowed: torchvision/resnet18\n" in capsys.readouterr().out


def test_a_rename_is_written_with_an_equals_sign(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.pth"
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    torch.save({f"net.{key}.w": value for key, value in state.items()}, path)
    arch = [*RESNET, "--num-classes", "10"]
    assert main(["match", str(path), *arch, "--rename", "net.*.w=*"]) == 0
    assert main(["match", str(path), *arch, "--rename", "net"]) == 12
    assert "--rename 'net' has no =. Write OLD=NEW." in capsys.readouterr().err


def test_json_has_every_key(theirs: Path, capsys) -> None:
    assert main(["match", "--json", str(theirs), *RESNET, "--num-classes", "5"]) == 9
    written = json.loads(capsys.readouterr().out)
    assert (written["network"], written["fits"]) == ("torchvision/resnet18", False)
    assert len(written["assignments"]) == 120
    assert [item["target"] for item in written["mismatched"]] == ["fc.weight", "fc.bias"]
    assert written["coverage"] < 1
    assert "adapt={'fc.*': 'skip'}" in written["advice"]


def test_another_network_is_named(theirs: Path, capsys) -> None:
    assert main(["match", str(theirs), "--arch", "torchvision/vgg11"]) == 9
    assert "By names and shapes the file is: resnet18 for 10 classes" in capsys.readouterr().out


def test_a_file_that_looks_like_nothing_needs_a_network(tmp_path: Path, capsys) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    assert main(["match", str(tmp_path / "a.pth")]) == 12
    assert "fit no network of torchvision or timm. Name one with --arch." in capsys.readouterr().err


def test_names_of_the_file_are_escaped(tmp_path: Path, capsys) -> None:
    torch.save({"\x1b[31mfc.weight": torch.ones(2, 2)}, tmp_path / "a.pth")
    assert main(["match", str(tmp_path / "a.pth"), *RESNET]) == 9
    assert "\\x1b[31mfc.weight" in capsys.readouterr().out
