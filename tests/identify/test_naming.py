"""Which of the models that share all shapes it is, where the file itself says so."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import torchkeep
from torchkeep.identify import ArchitectureMatch
from torchkeep.identify.architectures import named_by_class, named_by_values, prefer

TIES = ("torchvision/resnet18", "timm/resnet18", "timm/resnetblur18")


def matches(*names: str) -> list[ArchitectureMatch]:
    rest = (None, 3, (), (), (), "")
    return [
        *(ArchitectureMatch(n, 1.0, *rest) for n in names),
        ArchitectureMatch("x/y", 0.9, *rest),
    ]


def first(values: dict[str, Any], framework: str | None = None, class_path: str = "") -> list[str]:
    """Return the names that are preferred, and after them where the file names these."""
    namings = [*named_by_class(class_path), *named_by_values(values, framework)]
    preferred = prefer(matches(*TIES), namings)
    assert {item.name for item in preferred} == {*TIES, "x/y"}
    assert preferred[-1].name == "x/y"
    named = [item for item in preferred if item.named_by]
    assert named == list(preferred[: len(named)])
    return [item.name for item in named] + [item.named_by for item in named[:1]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"arch": "resnetblur18"}, ["timm/resnetblur18", "arch"]),
        ({"arch": "resnet18"}, ["torchvision/resnet18", "timm/resnet18", "arch"]),
        ({"args.model": "timm/resnet18.a1_in1k"}, ["timm/resnet18", "args.model"]),
        ({"hyper_parameters.encoder_name": "ResNetBlur18"}, ["timm/resnetblur18"]),
        ({"config.json.architecture": "resnetblur18"}, ["timm/resnetblur18"]),
        ({"arch": "hf_hub:timm/resnet18"}, ["timm/resnet18", "arch"]),
        ({"arch": "resnet50"}, []),
        ({"arch": 18, "model": "", "name": "resnet18"}, []),
        ({"model": "resnet18" * 100}, []),
        ({"note": "resnetblur18"}, []),
    ],
)
def test_a_value_names_the_model(values: dict[str, Any], expected: list[str]) -> None:
    assert first(values)[: len(expected)] == expected
    assert bool(first(values)) == bool(expected)


def test_several_sources_narrow_it_down_together() -> None:
    found = first({"arch": "resnet18"}, class_path="timm.models.resnet.ResNet")
    assert found == ["timm/resnet18", "its class and arch"]
    assert first({"arch": "resnet18"}, "timm") == ["timm/resnet18", "arch"]
    assert first({}, class_path="mine.ResNet") == []
    found = first({"arch": "resnetblur18"}, class_path="torchvision.models.resnet.ResNet")
    assert found == ["torchvision/resnet18", "its class"]  # the other one can't be


def test_the_class_of_a_pickled_model_breaks_the_tie(tmp_path: Path) -> None:
    for library, model in (
        ("torchvision", torchvision.models.resnet18(num_classes=10)),
        ("timm", timm.create_model("resnet18", num_classes=10)),
    ):
        torch.save({"model": nn.DataParallel(model), "epoch": 1}, tmp_path / "a.pt")
        inspection = torchkeep.inspect(tmp_path / "a.pt")
        assert inspection.architecture[0].name == f"{library}/resnet18"
        assert inspection.architecture[0].named_by == "its class"
        assert len({match.score for match in inspection.architecture}) == 1


def test_the_summary_says_where_the_name_is_from(tmp_path: Path) -> None:
    weights = timm.create_model("resnetblur18", num_classes=10).state_dict()
    checkpoint = {"state_dict": weights, "hyper_parameters": Namespace(arch="resnetblur18")}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    inspection = torchkeep.inspect(tmp_path / "a.ckpt")
    assert "resnetblur18 for 10 classes (by hyper_parameters.arch)" in inspection.summary
    [best, *others] = inspection.to_json()["architecture"]
    assert (best["name"], best["named_by"]) == ("timm/resnetblur18", "hyper_parameters.arch")
    assert [match["named_by"] for match in others] == [None, None]


def test_the_config_beside_the_weights_names_the_model(tmp_path: Path) -> None:
    weights = timm.create_model("resnetblur18", num_classes=10).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetblur18"}))
    best = torchkeep.inspect(tmp_path).architecture[0]
    assert (best.name, best.named_by) == ("timm/resnetblur18", "config.json.architecture")


def test_a_larger_network_is_told_with_its_size_and_its_part(tmp_path: Path) -> None:
    encoder = torchvision.models.resnet34()
    del encoder.fc
    decoder = nn.Sequential(nn.Conv2d(512, 64, 3), nn.Conv2d(64, 16, 3), nn.Conv2d(16, 2, 3))
    unet = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    torch.save(unet.state_dict(), tmp_path / "a.pt")
    inspection = torchkeep.inspect(tmp_path / "a.pt")
    assert inspection.summary == (
        "Parameters only: 21,589,170 parameters in 222 tensors, contains resnet34 under encoder."
    )
    assert inspection.to_json()["architecture"][0]["is_part"] is True
