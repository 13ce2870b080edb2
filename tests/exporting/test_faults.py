"""Faults put into exports on purpose: the proof has to find each of them."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from exporting.samples import RECIPE, Faulty, classifier, images, inputs, net
from torchkeep.errors import ProofFailed
from torchkeep.exporting import Onnx, Pt2, Target, TorchScript, export
from torchkeep.exporting.targets import Program

TARGETS = (Onnx(), Pt2(), TorchScript())
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def _refusal(model: Any, target: Any, folder: Path, **how: Any) -> str:
    """Return what the proof says, after a look that it has left nothing behind."""
    out = folder / "out"
    out.mkdir()
    with pytest.raises(ProofFailed) as caught:
        export(model, out / "net.file", target=target, **how)
    assert not [*out.iterdir()], "something was left under a name"
    return str(caught.value)


@each_target
def test_a_changed_bias_is_found_and_its_layer_named(target: Target, tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        model = copy.deepcopy(program.model)
        with torch.no_grad():
            model.conv.bias[3] += 0.5
        return replace(program, model=model)

    told = _refusal(net(), Faulty(target, before), tmp_path, example=inputs())
    assert "it does not do what the original does: output of batch 1: it differs by up to" in told
    where = "The file's conv.bias" if target.name == "torchscript" else "layer that differs is"
    assert where in told
    # A convolution and the BatchNorm behind it are one node in ONNX, which has the latter's name.
    assert ("bn (BatchNorm2d)" if target.name == "onnx" else "conv") in told


@each_target
def test_a_layer_that_is_deep_is_named_with_the_right_one_before_it(
    target: Target, tmp_path: Path
) -> None:
    if target.name == "torchscript":
        pytest.skip("it does not let its layers be looked into")
    torch.manual_seed(0)
    parts = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()) for _ in range(4)]
    model = torch.nn.Sequential(*parts)

    def before(program: Program) -> Program:
        changed = copy.deepcopy(program.model)
        with torch.no_grad():
            changed[2][0].weight *= 1.5
        return replace(program, model=changed)

    told = _refusal(model, Faulty(target, before), tmp_path, example=torch.randn(9, 4))
    assert "The first layer that differs is 2.0 (Linear)" in told
    assert "1 before it is as it should be" in told


@pytest.mark.parametrize("target", TARGETS[:2], ids=lambda target: target.name)
def test_a_batch_that_is_fixed_is_found(target: Target, tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        return replace(program, dynamic=({},))

    told = _refusal(net(), Faulty(target, before), tmp_path, example=inputs())
    if target.name == "onnx":
        assert "its input x is [2, 3, 24, 24], and batch was to take any size" in told
    else:
        assert "its runtime can't run it" in told
        assert "(batch 1)" in told
        assert "--dynamic none" in told


def test_a_batch_that_a_trace_has_fixed_is_found(tmp_path: Path) -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # What a trace makes a number of, and a graph does not.
            return x.mean((2, 3)) + torch.zeros(int(x.shape[0]), 3)

    told = _refusal(Flat(), TorchScript(), tmp_path, example=inputs())
    assert "output of batch 1: its shape is [2, 3], and [1, 3] was expected" in told


def test_weights_that_are_missing_beside_the_file_are_found(tmp_path: Path) -> None:
    def after(path: Path) -> None:
        path.with_name(f"{path.name}.data").unlink()

    target = Faulty(Onnx(external_data=True), after=after)
    told = _refusal(net(), target, tmp_path, example=inputs())
    assert "its runtime can't run it" in told
    assert "net.file.data" in told


class _Dropping(torch.nn.Module):
    """Dropout that never ends."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand_like(x) > 0.5) * 2


@each_target
@pytest.mark.parametrize("part", ["bn", "dropout"])
def test_training_mode_is_found(target: Target, part: str, tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        model = copy.deepcopy(program.model)
        if target.name != "onnx":
            model.get_submodule(part).train()
        elif part == "dropout":  # the exporter to ONNX drops training mode, so it is spelled out
            model.dropout = _Dropping()
        else:
            model.bn.running_mean = model.bn.running_var = None
        return replace(program, model=model)

    told = _refusal(net(), Faulty(target, before), tmp_path, example=inputs())
    assert "it does not do what the original does" in told


@each_target
def test_another_normalisation_is_found(target: Target, tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        wrong = replace(RECIPE, mean=(0.485, 0.456, 0.406)).to_json()
        return replace(program, metadata={**program.metadata, "preprocessing": json.dumps(wrong)})

    data = images(tmp_path / "data")
    told = _refusal(classifier(tmp_path), Faulty(target, before), tmp_path, example=data)
    assert "its own preprocessing makes something else of image 1 than the original's" in told


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("classes", "5", "it names its classes 5, and the original cat"),
        ("classes", "[" * 100_000, "what it says of its classes can't be read"),
        ("preprocessing", "7", "its preprocessing can't be used"),
        ("preprocessing", '{"mean": [0.5]}', "its preprocessing can't be used"),
        (
            "preprocessing",
            json.dumps(RECIPE.to_json() | {"resize": 10**9}),
            "its preprocessing can't be used: no image is",
        ),
        (
            "preprocessing",
            json.dumps(RECIPE.to_json() | {"mean": [0.1] * 5, "std": [1] * 5}),
            "its own preprocessing makes something else of image 1",
        ),
    ],
    ids=["number", "nested", "no recipe", "half a recipe", "huge", "channels"],
)
def test_what_a_file_says_of_itself_may_be_anything(
    key: str, text: str, problem: str, tmp_path: Path
) -> None:
    def before(program: Program) -> Program:
        return replace(program, metadata={**program.metadata, key: text})

    data = images(tmp_path / "data")
    target = Faulty(TorchScript(), before)
    assert problem in _refusal(classifier(tmp_path), target, tmp_path, example=data)


@each_target
def test_another_order_of_the_classes_is_found(target: Target, tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        names = json.loads(program.metadata["classes"])[::-1]
        return replace(program, metadata={**program.metadata, "classes": json.dumps(names)})

    told = _refusal(classifier(tmp_path), Faulty(target, before), tmp_path)
    assert "it names its classes owl, dog, cat, and the original cat, dog, owl" in told


@each_target
def test_a_truncated_file_is_found(target: Target, tmp_path: Path) -> None:
    def after(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-200])

    told = _refusal(net(), Faulty(target, after=after), tmp_path, example=inputs())
    assert "net.file: its runtime" in told


@each_target
def test_a_stale_file_of_an_older_model_is_found(target: Target, tmp_path: Path) -> None:
    old = tmp_path / "old.file"
    export(net(seed=1), old, target=target, example=inputs())

    def after(path: Path) -> None:
        shutil.copy(old, path)

    told = _refusal(net(seed=2), Faulty(target, after=after), tmp_path, example=inputs())
    assert "it does not do what the original does" in told


def test_a_small_fault_that_no_class_shows_is_found(tmp_path: Path) -> None:
    def before(program: Program) -> Program:
        model = copy.deepcopy(program.model)
        with torch.no_grad():
            model.head.bias[0] += 1e-3
        return replace(program, model=model)

    told = _refusal(net(), Faulty(Onnx(), before), tmp_path, example=inputs())
    assert "it differs by up to 0.001" in told
