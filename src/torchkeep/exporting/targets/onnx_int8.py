"""An ONNX file with integers of 8 bits, as onnxruntime computes with them on processors.

Weights are integers from -64 to 64 for each channel by itself, and what goes into a layer is one of
0 to 255. The seventh bit of the weights is given away: processors without VNNI add two products in
16 bits, and full weights overflow there. On such a one that costs a ResNet18 0.3 points of
accuracy, a MobileNetV3 2.2 and a vision transformer 7.0, and nothing with 7 bits; with bytes that
have no sign on both sides nothing overflows, and a ResNet18 is two times as fast as float32 instead
of two and a half times.

Convolutions and products with weights are quantized, and what stands between them where integers
can stay integers (`onnx_activations.py`). Attention, normalisation and the network's outputs stay
float32. A vision transformer is the faster for it, and nearer to the original (0.3% of its
decisions change instead of 3%).

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchkeep.errors import ExportRefused
from torchkeep.exporting.targets.exporters import import_onnxruntime, quietly, reason
from torchkeep.exporting.targets.onnx_activations import (
    BETWEEN,
    nodes_between,
    output_limits,
    round_for_hard_sigmoids,
    sources_of_pools,
    spell_out,
)
from torchkeep.exporting.targets.target import Program, check_ranges

if TYPE_CHECKING:
    from torchkeep.training.quantizing import Ranges

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""How the range of an activation follows from what was seen, by onnxruntime's names."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantized(source: Path, program: Program, *, method: str, external: bool) -> Any:
    """Return the model of a float32 file, quantized.

    Args:
        source: the file; its folder is used for more.
        program: what was written to it, with real inputs to calibrate with, and the ranges that
            were learnt in training.
        method: one of `METHODS`.
        external: whether weights are beside the files.

    Raises:
        ExportRefused: there is nothing in it to quantize, or a range is of no layer.
    """
    import onnx

    quantization = _quantization()
    model = onnx.load(source, load_external_data=False)
    spell_out(model.graph)
    onnx.save(model, source)
    layers, limited = _layers(model.graph), output_limits(model.graph)
    between = nodes_between(model.graph, layers)
    pooled = sources_of_pools(model.graph, between)
    options = {
        "MatMulConstBOnly": True,
        "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
        "TensorQuantOverrides": _learnt(layers, program.ranges, limited, pooled),
    }
    place = source.with_name("int8.onnx")
    with quietly(), contextlib.redirect_stdout(io.StringIO()):
        _run(
            quantization.quantize_static,
            source,
            place,
            _Reader(program),
            op_types_to_quantize=[*_LAYERS, *BETWEEN],
            nodes_to_quantize=[*(node.name for node in layers), *between],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, METHODS[method]),
            use_external_data_format=external,
            extra_options=options,
        )
    model = onnx.load(place)
    round_for_hard_sigmoids(model.graph, limited)
    return _finished(model, program, "QuantizeLinear")


def dynamically_quantized(source: Path, program: Program, *, external: bool) -> Any:
    """Return the model of a float32 file with weights of 8 bits, which needs no real inputs.

    Linear layers are quantized, and what goes into them as it comes. Convolutions stay float32:
    onnxruntime has but a slow one of that kind, a third as fast as float32's.

    Args:
        source: the file; its folder is used for more.
        program: what was written to it.
        external: whether weights are beside the files.

    Raises:
        ExportRefused: there is nothing in it to quantize.
    """
    import onnx

    quantization = _quantization()
    place = source.with_name("int8.onnx")
    with quietly(), contextlib.redirect_stdout(io.StringIO()):
        _run(
            quantization.quantize_dynamic,
            source,
            place,
            op_types_to_quantize=["Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=external,
            extra_options={"MatMulConstBOnly": True},
        )
    return _finished(onnx.load(place), program, "MatMulInteger")


def _quantization() -> Any:
    import_onnxruntime()
    return import_module("onnxruntime.quantization")


class _Reader:
    """Real inputs, as onnxruntime asks for them."""

    def __init__(self, program: Program) -> None:
        self._batches = iter(program.calibration)
        self._names = program.names

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        return {name: arg.numpy() for name, arg in zip(self._names, batch, strict=True)}


def _run(quantize: Any, *args: Any, **how: Any) -> None:
    try:
        quantize(*args, **how)
    except Exception as error:  # onnxruntime's own, of many kinds
        raise ExportRefused(
            f"onnxruntime can't quantize the network ({reason(error)})",
            advice="float16 is half as large as float32, and takes any network.",
        ) from error


def _layers(graph: Any) -> list[Any]:
    """Return the nodes that multiply by weights, and can do so in integers."""
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type in _LAYERS and constants & {*node.input[1:2]} and not _is_too_grouped(node)
    ]


def _is_too_grouped(node: Any) -> bool:
    """Whether it is a transposed convolution in groups with a bias.

    Its weight has the channels of one group, and onnxruntime takes its scales for those of the
    bias, which has all.
    """
    groups = next((item.i for item in node.attribute if item.name == "group"), 1)
    return node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2


def _learnt(
    layers: Sequence[Any],
    ranges: Ranges,
    limits: Mapping[str, tuple[float, float]],
    pooled: Mapping[str, str],
) -> dict[str, Any]:
    """Return the ranges that were learnt, by the names of the tensors.

    Args:
        layers: the nodes that multiply by weights.
        ranges: by the name of the module.
        limits: by tensor, what it is within anyway.
        pooled: by what comes out of a pool, what goes in: both have one range.

    Raises:
        ExportRefused: one is of no layer in the file.
    """
    check_ranges(ranges, {_module_of(node) for node in layers}, "file")
    found: dict[str, tuple[float, float]] = {}
    for node in layers:
        name = _module_of(node)
        if name not in ranges:
            continue
        tensor = pooled.get(node.input[0], node.input[0])
        # Layers with one input have one range: that of both.
        low, high = found.get(tensor, (0.0, 0.0))
        least, most = limits.get(tensor, (-np.inf, np.inf))
        low, high = min(low, ranges[name][0]), max(high, ranges[name][1])
        found[tensor] = max(low, least), min(high, most)
    return {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in found.items()
    }


def _module_of(node: Any) -> str:
    """Return the name of the module whose weight a node has.

    A node that a convolution and its BatchNorm have become says that it is of the latter; its
    weight has kept its name. That of a linear layer may be turned around, and has lost it.
    """
    module, _, kind = str(node.input[1]).rpartition(".")
    if kind == "weight":
        return module
    props = {item.key: item.value for item in node.metadata_props}
    scopes = ast.literal_eval(props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _finished(model: Any, program: Program, mark: str) -> Any:
    """Make sure that something was quantized, and have the file say of itself what it is to say."""
    if not any(node.op_type == mark for node in model.graph.node):
        raise ExportRefused(
            "there is nothing to quantize: the network has no "
            f"{'linear' if mark == 'MatMulInteger' else 'convolution or linear'} layer",
            advice="Choose int8 if it has convolutions, or float16.",
        )
    del model.metadata_props[:]
    for key, value in program.metadata.items():
        model.metadata_props.add(key=key, value=value)
    # What is of no use to whoever runs it is a tenth of a small network's file.
    _drop_zeros(model.graph)
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return model


def _drop_zeros(graph: Any) -> None:
    """Leave out the zero points of the biases: they are zero, and that is what no zero point means.

    Those of the weights stay, though they are zero as well: without them onnxruntime takes a linear
    layer in float32.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        zeros = tensors.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type != "DequantizeLinear" or zeros is None:
            continue
        if (
            zeros.data_type == onnx.TensorProto.INT32
            and not onnx.numpy_helper.to_array(zeros).any()
        ):
            del node.input[2]
    used = _used(graph)
    kept = [tensor for name, tensor in tensors.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _used(graph: Any) -> set[str]:
    """Return the names that a graph uses: within its branches as well, and as its results."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found.update(node.input)
        for item in node.attribute:
            for branch in (item.g, *item.graphs):
                found |= _used(branch)
    return found
