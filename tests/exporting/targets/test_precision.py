"""Smaller numbers in deployment files, on a network that was trained, and on files as they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from exporting.samples import CLASSES, RECIPE, classifier, images, inputs, net, program
from torchkeep.errors import ExportRefused, ProofFailed, WrongArgument
from torchkeep.exporting import (
    Onnx,
    Pt2,
    Subject,
    Target,
    Tolerance,
    TorchScript,
    export,
    prove,
)
from torchkeep.exporting.proof.session import Session
from torchkeep.exporting.targets import Program
from torchkeep.exporting.targets.exporters import quietly
from torchkeep.training.classifier import load_classifier, save_classifier

ANY = Tolerance(9.0, 0.0, 0.0, 1.0)
"""For files that are looked into, of networks that know nothing."""

INT8 = (Onnx(precision="int8"), Pt2(precision="int8"))
HALVES = (
    Onnx(precision="float16"),
    Pt2(precision="float16"),
    Pt2(precision="bfloat16"),
    TorchScript(precision="float16"),
    TorchScript(precision="bfloat16"),
)


def _id(target: Target) -> str:
    return f"{target.name}-{target.precision}"


each_int8 = pytest.mark.parametrize("target", INT8, ids=_id)
each_half = pytest.mark.parametrize("target", HALVES, ids=_id)


class Digits(nn.Module):
    """Has convolutions with and without BatchNorm, and linear layers in 2 and 3 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.two = nn.Conv2d(32, 96, 3, stride=2, padding=1)
        self.mix = nn.Linear(96, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.two(torch.relu(self.bn(self.one(x)))))
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.mix(tokens)).mean(1))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's digits `[n, 1, 8, 8]`, from 0 to 1, and what they are."""
    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that knows its digits, on the first 1,400 of them."""
    torch.manual_seed(0)
    model, (images, labels) = Digits(), digits()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(1400).split(50):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def _written(model: nn.Module, folder: Path, target: Target, **how: Any) -> Path:
    """Write a file without proving it, with ranges of images that were trained on."""
    images, _ = digits()
    path = folder / f"{_id(target)}{target.suffixes[0]}"
    target.write(program(model, images[:64], **how), path)
    return path


def _run(target: Target, path: Path, images: torch.Tensor) -> Any:
    module = import_module(f"torchkeep.exporting.targets.{target.name}")
    (found,) = module.open_file(path, threads=torch.get_num_threads()).run([images.numpy()])
    return found


def _weights(path: Path) -> Mapping[str, Any]:
    """Return the tensors of two dimensions and more in a file, by their names in it."""
    if path.suffix == ".onnx":
        tensors = {each.name: onnx.numpy_helper.to_array(each) for each in _graph(path).initializer}
        return {name: array for name, array in tensors.items() if array.ndim > 1}
    if path.suffix == ".ts":
        named = _scripted(path).named_parameters()
        return {name: tensor for name, tensor in named if tensor.dim() > 1}
    graph = _loaded(path)
    tensors = {**graph.state_dict, **graph.constants}
    return {name: tensor for name, tensor in tensors.items() if tensor.dim() > 1}


def _loaded(path: Path) -> Any:
    import_module("torch.ao.quantization.fx._decomposed")  # the operators of int8
    return torch.export.load(path)


def _scripted(path: Path) -> Any:
    with quietly():
        return torch.jit.load(path)


def _graph(path: Path) -> Any:
    return onnx.load(path).graph


def _scales(path: Path) -> dict[str, tuple[float, int]]:
    """Return the scale and the zero point of each tensor that an ONNX file rounds."""
    graph = _graph(path)
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    return {
        node.input[0]: (float(tensors[node.input[1]]), int(tensors[node.input[2]]))
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }


# --- int8 --------------------------------------------------------------------------------------


@each_int8
def test_int8_weights_are_int8_in_the_file_and_the_digits_are_still_known(
    trained: nn.Module, target: Target, tmp_path: Path
) -> None:
    images, labels = digits()
    path = _written(trained, tmp_path, target)
    whole = _written(trained, tmp_path, replace(target, precision="float32"))
    kinds = {str(weight.dtype).removeprefix("torch.") for weight in _weights(path).values()}
    assert kinds == {"int8"}
    saved = whole.stat().st_size - path.stat().st_size
    assert saved > 0.5 * sum(weight.nbytes for weight in _weights(whole).values())
    found = _run(target, path, images[1400:])
    with torch.no_grad():
        before = (trained(images[1400:]).argmax(1) == labels[1400:]).float().mean()
    after = (found.argmax(1) == labels[1400:].numpy()).mean()
    assert before > 0.85
    assert after > before - 0.01


def test_weights_have_seven_bits_since_eight_overflow_on_old_processors(
    trained: nn.Module, tmp_path: Path
) -> None:
    path = _written(trained, tmp_path, Onnx(precision="int8"))
    largest = [int(np.abs(weight.astype(int)).max()) for weight in _weights(path).values()]
    assert len(largest) == 4
    assert set(largest) <= {63, 64}


LEARNT = {"one": (0.0, 2.0), "two": (-1.0, 4.1), "mix": (0.0, 7.0), "head": (0.0, 3.0)}
"""Nothing that calibration would find."""


def test_onnx_takes_the_ranges_that_were_learnt(trained: nn.Module, tmp_path: Path) -> None:
    path = _written(trained, tmp_path, Onnx(precision="int8"), ranges=LEARNT)
    # What a ReLU gives is not below zero, and rounding takes the ReLU's place.
    ranges = [*(LEARNT | {"two": (0.0, 4.1)}).values()]
    expected = {((high - low) / 255, round(-low / (high - low) * 255)) for low, high in ranges}
    found = {(round(scale, 6), zero) for scale, zero in _scales(path).values()}
    assert {(round(scale, 6), zero) for scale, zero in expected} <= found


def test_pt2_takes_the_ranges_that_were_learnt(trained: nn.Module, tmp_path: Path) -> None:
    path = _written(trained, tmp_path, Pt2(precision="int8"), ranges=LEARNT)
    graph = _loaded(path).graph
    rounded = [node for node in graph.nodes if "quantize_per_tensor" in str(node.target)]
    found = {(round(node.args[1], 6), node.args[2]) for node in rounded}
    expected = {
        (round((high - low) / 255, 6), round(-low / (high - low) * 255))
        for low, high in LEARNT.values()
    }
    assert found == expected


@each_int8
def test_a_range_of_no_layer_is_refused(trained: nn.Module, target: Target, tmp_path: Path) -> None:
    with pytest.raises(
        ExportRefused, match=r"a range was learnt for body\.one, and the \w+ has no"
    ):
        _written(trained, tmp_path, target, ranges={"body.one": (0.0, 1.0)})
    assert not [*tmp_path.iterdir()]


def test_ranges_are_those_of_the_images_to_train_on(tmp_path: Path) -> None:
    for part, grey in (("train", 0), ("val", 255)):
        for name in CLASSES:
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for at in range(2):
                Image.new("RGB", (30, 30), (grey,) * 3).save(folder / f"{at}.png")
    path = tmp_path / "net.onnx"
    data = str(tmp_path / "data")
    export(classifier(tmp_path), path, target=Onnx(precision="int8"), data=data, tolerance=ANY)
    lowest = min(-mean / std for mean, std in zip(RECIPE.mean, RECIPE.std, strict=True))
    assert _scales(path)["x"] == (pytest.approx(-lowest / 255, rel=1e-5), 255)


def _trained_for_8_bits(folder: Path, low: float, high: float) -> Path:
    """Write a classifier that has learnt the range of its first layer's input."""
    network, card = load_classifier(classifier(folder))
    card = replace(card, qat={"conv1.0": (low, high)})
    save_classifier(network, card, folder / "qat.safetensors")
    return folder / "qat.safetensors"


CUT = (-0.2, 0.2)
"""A range that cuts off most of each image: without it, the network is another one."""


def test_a_card_brings_its_ranges_to_the_file(tmp_path: Path) -> None:
    model, path = _trained_for_8_bits(tmp_path, -3.0, 5.0), tmp_path / "net.onnx"
    export(model, path, target=Onnx(precision="int8"), tolerance=ANY)
    assert _scales(path)["x"] == (pytest.approx(8 / 255, rel=1e-5), round(3 / 8 * 255))


@each_int8
def test_what_was_trained_for_8_bits_is_compared_with_what_it_computes_in_them(
    target: Target, tmp_path: Path
) -> None:
    model, path = _trained_for_8_bits(tmp_path, *CUT), tmp_path / f"net{target.suffixes[0]}"
    report = export(model, path, target=target, example=inputs(16))
    assert any("compared with what it computes in 8 bits" in note for note in report.notes)


class Bright(nn.Module):
    """Takes an image for the first class, and one that is grey for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.conv.weight.fill_(0).view(3, 3)[0] = 1.0
            self.conv.bias.copy_(torch.tensor([0.0, 0.05, -1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def test_accuracy_is_against_the_plain_network_whatever_it_was_trained_for(tmp_path: Path) -> None:
    data = images(tmp_path / "data", per_class=6)
    (data / CLASSES[1] / "0.png").unlink()
    # In 8 bits nothing is left of an image.
    nothing = {"conv": (0.0, 1e-3)}
    known = {"classes": CLASSES, "preprocessing": RECIPE, "ranges": nothing}
    report = export(
        Subject(Bright().eval(), "a net", **known),
        tmp_path / "net.onnx",
        target=Onnx(precision="int8"),
        data=data,
        whole=True,
        calibration=data,
        tolerance=ANY,
    )
    assert report.accuracy is not None
    assert (report.accuracy.original, report.accuracy.exported) == (6, 5)


def test_a_file_that_computes_without_the_learnt_ranges_is_refused(tmp_path: Path) -> None:
    model, path = _trained_for_8_bits(tmp_path, *CUT), tmp_path / "net.onnx"
    export(model, path, example=inputs(16))
    with pytest.raises(ProofFailed, match=r"it does not do what the original does"):
        prove(model, path, target=Onnx(precision="int8"), example=inputs(16))


@pytest.mark.parametrize("external", [False, True])
def test_int8_keeps_what_the_file_says_and_its_batch(external: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    target = Onnx(precision="int8", external_data=external)
    example = torch.randn(16, 3, 24, 24)
    report = export(classifier(tmp_path), path, target=target, example=example, tolerance=ANY)
    with Session("onnx", path, threads=1) as session:
        assert session.metadata is not None
        assert set(session.metadata) == {"arch", "classes", "preprocessing", "source", "torchkeep"}
        assert session.inputs[0].shape == ("batch", 3, 24, 24)
    cases = [each.case for each in report.comparisons]
    assert cases == ["batch 1", "batch 2", "batch 7", "batch 16"]
    assert path.with_name("net.onnx.data").exists() == external
    assert (len(report.files) == 2) == external


def test_an_int8_file_runs_without_torch_and_without_torchkeep(
    trained: nn.Module, tmp_path: Path
) -> None:
    path = _written(trained, tmp_path, Onnx(precision="int8"))
    images = digits()[0][1400:1410].numpy()
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
sys.modules["torch"] = sys.modules["torchkeep"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
(found,) = session.run(None, {"x": numpy.load(sys.argv[2])})
numpy.save(sys.argv[2], found)
"""
    command = [sys.executable, "-I", "-c", code, str(path), str(tmp_path / "images.npy")]
    subprocess.run(command, check=True, capture_output=True)
    with torch.no_grad():
        expected = trained(torch.from_numpy(images)).argmax(1)
    assert (np.load(tmp_path / "images.npy").argmax(1) == expected.numpy()).mean() >= 0.9


def test_dynamic_int8_is_of_linear_layers_and_leaves_convolutions(
    trained: nn.Module, tmp_path: Path
) -> None:
    path = _written(trained, tmp_path, Onnx(precision="int8-dynamic"))
    kinds = {array.ndim: str(array.dtype) for array in _weights(path).values()}
    assert kinds == {2: "int8", 4: "float32"}


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_ways_to_find_a_range_do_as_well_and_say_nothing(
    trained: nn.Module, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(trained, tmp_path, Onnx(precision="int8", calibration_method=method))
    assert _scales(path)
    assert capsys.readouterr() == ("", "")


@each_int8
def test_a_network_that_got_worse_gets_no_name(
    trained: nn.Module, target: Target, tmp_path: Path
) -> None:
    images, _ = digits()
    path = tmp_path / f"net{target.suffixes[0]}"
    with pytest.raises(ProofFailed, match="it does not do what the original does"):
        export(
            trained, path, target=target, example=images[1400:1464], calibration=images[:8] * 1e-3
        )
    assert not [*tmp_path.iterdir()]


# --- float16 and bfloat16 ------------------------------------------------------------------------


@each_half
def test_halves_are_in_the_file_and_float32_goes_in_and_comes_out(
    trained: nn.Module, target: Target, tmp_path: Path
) -> None:
    path = _written(trained, tmp_path, target)
    kinds = {str(weight.dtype).removeprefix("torch.") for weight in _weights(path).values()}
    assert kinds == {target.precision}
    images, _ = digits()
    if target.name == "onnx":
        assert _run(target, path, images[:3]).dtype == np.float32
    else:
        network = _scripted(path) if path.suffix == ".ts" else _loaded(path).module()
        assert network(images[:2]).dtype == torch.float32
    assert next(trained.parameters()).dtype == torch.float32, "the original was changed"


def test_outputs_by_name_stay_so_in_a_half(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
            one = self.net(left)
            return {"both": (one, self.net(right)), "at": one.argmax(1)}

    args = inputs(2), inputs(2).flip(0)
    outputs = ("both.0", "both.1", "at")
    pair = Program(Pair().eval(), args, ("left", "right"), outputs, ({}, {}), {})
    Pt2(precision="bfloat16").write(pair, tmp_path / "pair.pt2")
    found = _loaded(tmp_path / "pair.pt2").module()(*args)
    assert [tensor.dtype for tensor in found["both"]] == [torch.float32] * 2
    assert found["at"].dtype == torch.int64


# --- Refusals ----------------------------------------------------------------------------------


def test_what_can_not_be_is_refused_in_words() -> None:
    with pytest.raises(WrongArgument, match="no calibration by 'guess'"):
        Onnx(calibration_method="guess")
    with pytest.raises(WrongArgument, match=r"a compiled \.pt2 has no precision int8"):
        Pt2(compile=True, precision="int8")
    with pytest.raises(WrongArgument, match="TorchScript by script has no precision float16"):
        TorchScript(by="script", precision="float16")
    with pytest.raises(WrongArgument, match="the target onnx has no precision 'bfloat16'"):
        Onnx(precision="bfloat16")


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (Onnx(precision="int8"), "convolution or linear"),
        (Onnx(precision="int8-dynamic"), "linear"),
        (Pt2(precision="int8"), "convolution or linear"),
    ],
    ids=["onnx-int8", "onnx-int8-dynamic", "pt2-int8"],
)
def test_a_network_with_nothing_to_quantize_is_refused(
    target: Target, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(
        ExportRefused, match=f"nothing to quantize: the network has no {kind} layer"
    ):
        _written(nn.Sequential(nn.AvgPool2d(2), nn.ReLU()), tmp_path, target)


@each_half
def test_a_network_that_mixes_types_is_refused(target: Target, tmp_path: Path) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1)[:, :8].to(torch.float32))

    with pytest.raises(ExportRefused, match=f"the network does not run in {target.precision}"):
        _written(Mixing(), tmp_path, target)


@each_int8
def test_what_the_quantizer_can_not_do_is_refused_with_its_reason(
    trained: nn.Module, target: Target, tmp_path: Path
) -> None:
    # Images of other sizes than those that it was exported for: its own code raises.
    wrong = program(trained, torch.zeros(2, 1, 8, 8), calibration=[(torch.zeros(1, 1, 8, 9),)])
    with pytest.raises(ExportRefused, match="can't quantize the network"):
        target.write(wrong, tmp_path / f"net{target.suffixes[0]}")
