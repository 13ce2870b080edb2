"""What stands between the convolutions of an int8 file, and is computed in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporting.samples import program
from torchkeep.exporting import Onnx
from torchkeep.exporting.targets.onnx import open_file
from torchkeep.exporting.targets.onnx_activations import round_for_hard_sigmoids


class Gate(nn.Module):
    """A squeeze-and-excitation, as MobileNetV3 has them."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.gate = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.two(torch.relu(self.one(means))))


class Block(nn.Module):
    """Convolutions with everything between them that the integers reach."""

    def __init__(self, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.act, self.gate = act, Gate(gate)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.one(x))
        x = nn.functional.max_pool2d(self.gate(self.act(self.two(x))) + x, 2)
        x = nn.functional.relu6(self.three(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _int8(model: nn.Module, inputs: torch.Tensor, path: Path, **how: Any) -> onnx.GraphProto:
    Onnx(precision="int8").write(program(model, inputs, **how), path)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path).graph


def _found(path: Path, inputs: torch.Tensor) -> Any:
    return open_file(path, threads=1).run([inputs.numpy()])[0]


def _in_floats(graph: onnx.GraphProto) -> set[str]:
    """Return the kinds of what takes or gives a number that is not rounded."""
    makers = {name: node.op_type for node in graph.node for name in node.output}
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    same = {"QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten", "Gemm"}
    return {
        node.op_type
        for node in graph.node
        if node.op_type not in same
        and (
            {makers[name] for name in node.input if name in makers} != {"DequantizeLinear"}
            or any(users[name] != {"QuantizeLinear"} for name in node.output)
        )
    }


@pytest.mark.parametrize(
    ("act", "gate"),
    [(nn.Hardswish(), nn.Hardsigmoid()), (nn.SiLU(), nn.Sigmoid()), (nn.ReLU(), nn.Hardsigmoid())],
    ids=["hard", "smooth", "relu"],
)
def test_no_number_is_a_float_between_the_first_and_the_last_layer(
    act: nn.Module, gate: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = Block(act, gate), torch.randn(32, 3, 16, 16) * 3
    graph = _int8(model, inputs, tmp_path / "net.onnx")
    assert _in_floats(graph) == set()
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"Relu", "Clip", "HardSigmoid", "HardSwish", "ReduceMean"}
    with torch.no_grad():
        expected = model(inputs).numpy()
    gaps = _found(tmp_path / "net.onnx", inputs) - expected
    assert np.abs(gaps).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("reach", [2.9, 8.0])
def test_a_hard_swish_by_rounding_is_right_all_along(reach: float, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Hardswish(), nn.Conv2d(1, 1, 1))
    for layer in (model[0], model[2]):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    inputs = torch.linspace(-reach, reach, 1024).reshape(2, 1, 1, 512)
    _int8(model, inputs, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = model(inputs).numpy()
    gaps = _found(tmp_path / "net.onnx", inputs) - expected
    step = np.abs(expected).max() / 255
    assert np.abs(gaps).max() < 3 * step
    # It is not off to one side: such errors add up over layers.
    assert abs((gaps * np.sign(inputs.numpy())).mean()) < 0.1 * step


class Line(nn.Module):
    """Convolutions with something between them."""

    def __init__(self, *between: nn.Module, are_results: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=False)
        self.between, self.are_results = nn.Sequential(*between), are_results

    def forward(self, x: torch.Tensor) -> Any:
        x = self.one(x)
        result = self.two(self.between(x))
        return (result, x) if self.are_results else result


@pytest.mark.parametrize(
    "between",
    [
        (nn.ReLU(), nn.Hardsigmoid()),
        (nn.Hardtanh(-0.2, 0.1), nn.Hardsigmoid()),
        (nn.Hardsigmoid(), nn.Hardsigmoid(), nn.Hardsigmoid()),
        (nn.ReLU(), nn.MaxPool2d(2), nn.Hardsigmoid()),
    ],
    ids=["relu", "clip", "chain", "pool"],
)
def test_a_hard_sigmoid_takes_no_other_rounding_its_end(
    between: tuple[nn.Module, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = Line(*between), torch.randn(32, 3, 12, 12) * 3
    _int8(model, inputs, tmp_path / "net.onnx")
    with torch.no_grad():
        expected = model(inputs).numpy()
    gaps = _found(tmp_path / "net.onnx", inputs) - expected
    assert np.abs(gaps).max() < 0.02 * np.abs(expected).max()


def test_what_a_hard_sigmoid_takes_may_be_a_result(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Line(nn.Hardsigmoid(), are_results=True), torch.randn(8, 3, 12, 12)
    _int8(model, inputs, tmp_path / "net.onnx", outputs=("one", "two"))
    found = open_file(tmp_path / "net.onnx", threads=1).run([inputs.numpy()])
    with torch.no_grad():
        for one, two in zip(found, model(inputs), strict=True):
            assert np.abs(one - two.numpy()).max() < 0.02 * two.abs().max()


def test_sums_around_a_normalisation_stay_float32(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.mix = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            return x + self.mix(self.norm(x) * 2).sigmoid()

    graph = _int8(Residual(), torch.randn(8, 3, 16, 16), tmp_path / "net.onnx")
    assert {"Add", "Mul", "Sigmoid"} <= _in_floats(graph)


def test_a_sum_that_is_a_result_stays_float32(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.one(x) + self.two(x))

    graph = _int8(Twice(), torch.randn(8, 3, 16, 16), tmp_path / "net.onnx")
    assert {"Add", "Relu"} <= _in_floats(graph)


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "used twice"])
@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.5, 0.3), (0.1, 1.0)])
def test_any_line_can_be_rounded_by(
    alpha: float, beta: float, is_alone: bool, tmp_path: Path
) -> None:
    lines = [
        ("QuantizeLinear", ["x", "scale", "zero"], "rounded"),
        ("DequantizeLinear", ["rounded", "scale", "zero"], "opened"),
        ("HardSigmoid", ["opened"], "hard"),
        ("QuantizeLinear", ["hard", "unit", "none"], "closed"),
        ("DequantizeLinear", ["closed", "unit", "none"], "output"),
        ("Identity", ["opened"], "other"),
    ][: 5 if is_alone else 6]
    nodes = [helper.make_node(kind, given, [made], f"{made}_node") for kind, given, made in lines]
    ends = {"alpha": alpha, "beta": beta}
    nodes[2].attribute.extend(helper.make_attribute(name, item) for name, item in ends.items())
    numbers = {
        "scale": np.float32(0.05),
        "zero": np.uint8(128),
        "unit": np.float32(1 / 255),
        "none": np.uint8(0),
    }
    tensors = [numpy_helper.from_array(np.asarray(item), name) for name, item in numbers.items()]
    names = ["x", "output", *([] if is_alone else ["other"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 201]) for name in names]
    graph = helper.make_graph(nodes, "line", ports[:1], ports[1:], tensors)
    round_for_hard_sigmoids(graph)
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("HardSigmoid") == 0
    assert len(kinds) == (2 if is_alone else 7)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    inputs = torch.linspace(-5, 5, 201)[None]
    found = _found(tmp_path / "net.onnx", inputs)
    line = (alpha * inputs + beta).clamp(0, 1).numpy()
    assert np.abs(found - line).max() < 1 / 255 + 0.026 * alpha


def test_what_branches_and_results_alone_use_stays_in_an_int8_file(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(n, 8, 3) for n in (3, 8, 8))
            self.register_buffer("anchors", torch.arange(4.0))

        def forward(self, x: torch.Tensor) -> Any:
            x = torch.relu(self.one(x))
            y = torch.cond(x.sum() > 0, lambda x: self.two(x), lambda x: self.three(x), (x,))
            return self.two(x) + y, self.anchors

    torch.manual_seed(0)
    model, inputs = Branches(), torch.randn(8, 3, 12, 12)
    _int8(model, inputs, tmp_path / "net.onnx", outputs=("sum", "anchors"))
    found = open_file(tmp_path / "net.onnx", threads=1).run([inputs.numpy()])
    with torch.no_grad():
        for one, two in zip(found, model(inputs), strict=True):
            assert np.abs(one - two.numpy()).max() <= 0.02 * two.abs().max()


def test_a_range_that_was_learnt_behind_pools_is_that_of_what_goes_into_them(
    tmp_path: Path,
) -> None:
    pools = nn.MaxPool2d(2), nn.MaxPool2d(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pools, nn.Conv2d(8, 4, 3))
    ranges = {"0": (-1.0, 1.0), "4": (0.0, 0.5)}
    graph = _int8(model, torch.randn(8, 3, 16, 16), tmp_path / "net.onnx", ranges=ranges)
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = [
        float(numbers[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"
    ]
    assert scales[:4] == pytest.approx([2 / 255] + [0.5 / 255] * 3)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_in_groups_with_a_bias_stays_float32(
    groups: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 16, 4, 2, 1, groups=groups)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(16, 3, 3))
    images = torch.randn(16, 3, 12, 12)
    graph = _int8(model, images, tmp_path / "net.onnx")
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert ("2.weight" in weights) == (groups > 1)
    expected = model(images).detach().numpy()
    assert np.abs(_found(tmp_path / "net.onnx", images) - expected).max() < 0.05 * expected.max()
