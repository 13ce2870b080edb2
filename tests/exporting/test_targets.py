"""One suite for all targets: what holds of any deployment file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from exporting.samples import CLASSES, TARGETS, Net, classifier, images, inputs, net
from torchkeep.errors import ProofFailed
from torchkeep.exporting import Onnx, OpenVino, Pt2, Target, TorchScript, export, prove
from torchkeep.exporting.proof.session import Session


def _id(target: Target) -> str:
    told = {name: getattr(target, name) for name in target.__dataclass_fields__}
    return "-".join([target.name, *(name for name, value in told.items() if value is True)])


each_target = pytest.mark.parametrize("target", TARGETS, ids=_id)
each_kind = pytest.mark.parametrize("target", [Onnx(), Pt2(), TorchScript(), OpenVino()], ids=_id)


@each_target
def test_a_file_does_what_the_network_does_at_all_batch_sizes(
    target: Target, tmp_path: Path
) -> None:
    model = net().train()
    report = export(model, tmp_path / f"net{target.suffixes[0]}", target=target, example=inputs())
    assert [each.case for each in report.comparisons] == ["batch 1", "batch 2", "batch 7"]
    assert all(each.relative < 1e-5 and each.agreement == 1 for each in report.comparisons)
    assert model.training, "its mode was not put back"
    assert model.dropout.training, "its mode was not put back"
    told = json.loads((tmp_path / f"net{target.suffixes[0]}.json").read_text())
    assert told["target"] == target.name
    assert len(told["speeds"]) == 2
    assert {each["name"] for each in told["files"]} | {f"net{target.suffixes[0]}.json"} == {
        path.name for path in tmp_path.iterdir()
    }


@each_target
def test_a_truncated_file_is_no_proof(target: Target, tmp_path: Path) -> None:
    path = tmp_path / f"net{target.suffixes[0]}"
    export(net(), path, target=target, example=inputs())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ProofFailed, match=r"its runtime (can't run it|was ended|ended)"):
        prove(net(), path, target=target, example=inputs())


@each_target
def test_a_file_of_older_weights_is_found(target: Target, tmp_path: Path) -> None:
    path = tmp_path / f"net{target.suffixes[0]}"
    model = net()
    export(model, path, target=target, example=inputs())
    with torch.no_grad():
        model.head.bias += 0.1
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        prove(model, path, target=target, example=inputs())


@each_target
def test_a_classifier_takes_its_classes_and_its_recipe_along(
    target: Target, tmp_path: Path
) -> None:
    path = tmp_path / f"net{target.suffixes[0]}"
    data = images(tmp_path / "data")
    report = export(classifier(tmp_path), path, target=target, data=data)
    assert report.is_real
    assert report.accuracy is not None
    assert report.accuracy.exported == report.accuracy.original
    with Session(target.name, path, threads=1) as session:
        metadata = session.metadata
    if metadata is None:
        assert report.images_prepared == 0
        return
    assert report.images_prepared == 3
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["preprocessing"])["height"] == 24
    assert metadata["arch"] == "timm/test_resnet"
    assert metadata["source"] == "best.safetensors"
    assert str(tmp_path).encode() not in path.read_bytes(), "it has its author's folder"


def test_each_target_has_a_sample() -> None:
    from torchkeep import exporting

    tested = {target.name for target in TARGETS} | {"executorch"}  # in targets/test_executorch.py
    assert tested == {target.name for target in exporting.TARGETS}


@each_kind
def test_image_sizes_vary_if_they_are_to(target: Target, tmp_path: Path) -> None:
    path = tmp_path / f"net{target.suffixes[0]}"
    report = export(net(), path, target=target, example=inputs(), dynamic="sizes")
    assert report.comparisons[-1].case == "batch 2, height 56, width 88"


@each_kind
def test_several_inputs_and_outputs_keep_their_order(target: Target, tmp_path: Path) -> None:
    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            one, two = self.net(left), self.net(right)
            return {"second": two - one, "first": one, "at": two.argmax(1)}

    path = tmp_path / f"pair{target.suffixes[0]}"
    example = {"left": inputs(), "right": inputs().flip(0)}
    report = export(Pair(), path, target=target, example=example)
    found = {each.output for each in report.comparisons}
    assert found == {"second", "first", "at"}


class Attention(nn.Module):
    """Attention of other shapes than `[n, heads, tokens, width]`, with what may come along."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(x).chunk(3, dim=-1)
        mask = torch.ones(6, 6, dtype=torch.bool).triu()
        flat = scaled_dot_product_attention(q, k, v, mask, scale=0.7)
        shape = [-1, 2, 1, 3, 8]
        q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)
        windows = scaled_dot_product_attention(q, k, v, is_causal=True)
        return (flat + windows.flatten(1, 3)).flatten(1)


@each_target
def test_attention_of_any_shape_is_exported(target: Target, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(9, 6, 8)
    report = export(
        Attention(), tmp_path / f"net{target.suffixes[0]}", target=target, example=example
    )
    assert report.worst.relative < 1e-5


@each_kind
def test_an_input_and_an_output_may_have_one_name(target: Target, tmp_path: Path) -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x * 2, "x_output": x + 1}

    path = tmp_path / f"same{target.suffixes[0]}"
    report = export(Same(), path, target=target, example=inputs())
    assert {each.output for each in report.comparisons} == {"x", "x_output"}
