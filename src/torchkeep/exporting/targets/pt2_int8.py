"""A graph of torch.export with weights of 8 bits, made with torchao's PT2E.

Weights lie in the file as int8, for each channel by itself. What goes into a layer is rounded to
one of 256 values, and computed with in float32 again: the file is a quarter of the size, and no
faster in PyTorch.

torchao's own quantizers follow what they know of modules, and X86InductorQuantizer does not know
what to make of one ReLU that is called twice, as torchvision's ResNets do. Here each convolution
and each linear layer is taken for itself.

Source: https://docs.pytorch.org/ao/stable/pt2e_quantization/index.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torchkeep.errors import ExportRefused
from torchkeep.exporting.targets.exporters import quietly, reason
from torchkeep.exporting.targets.graphs import graph_of
from torchkeep.exporting.targets.target import Program, check_ranges

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from torchkeep.training.quantizing import Ranges

_STEPS = 255
"""Between the least and the largest value of what goes into a layer."""


def quantized(program: Program) -> ExportedProgram:
    """Return the graph of a network, quantized.

    Args:
        program: the network, with real inputs to calibrate with, and the ranges that were learnt.

    Raises:
        ExportRefused: torchao can't quantize it, there is nothing to quantize, or a range is of no
            layer.
    """
    import torch

    graph = graph_of(program)
    with quietly(), torch.no_grad():
        from torchao.quantization.pt2e.quantize_pt2e import (  # type: ignore[import-untyped]
            convert_pt2e,
            prepare_pt2e,
        )

        try:
            model = prepare_pt2e(graph.module(), _quantizer(program.ranges))
            for batch in program.calibration:
                model(*batch)
            model = convert_pt2e(model)
        except ExportRefused:
            raise
        except Exception as error:  # torchao's own, of many kinds
            raise ExportRefused(
                f"torchao can't quantize the network ({reason(error)})",
                advice="--to onnx --precision int8 takes more of them; bfloat16 takes any network.",
            ) from error
    _drop_unused(model)
    return graph_of(replace(program, model=model))


def _quantizer(ranges: Ranges) -> Any:
    from torchao.quantization.pt2e.quantizer import (  # type: ignore[import-untyped]
        QuantizationAnnotation,
        Quantizer,
    )

    class Layers(Quantizer):  # type: ignore[misc]
        """Has each convolution and linear layer take integers."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            layers = [node for node in model.graph.nodes if _is_layer(node)]
            _check(layers, ranges)
            for node in layers:
                inputs = {
                    node.args[0]: _of_activation(ranges.get(_module_of(node))),
                    node.args[1]: _of_weight(),
                }
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs, _annotated=True
                )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Nothing is left to look at."""

    return Layers()


def _check(layers: list[Any], ranges: Ranges) -> None:
    if not layers:
        raise ExportRefused(
            "there is nothing to quantize: the network has no convolution or linear layer",
            advice="Choose float16 or bfloat16.",
        )
    check_ranges(ranges, {_module_of(node) for node in layers}, "graph")


def _is_layer(node: torch.fx.Node) -> bool:
    import torch

    aten = torch.ops.aten
    known = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
    if node.target not in known:
        return False
    weight = node.args[1]
    return isinstance(weight, torch.fx.Node) and weight.op == "get_attr"


def _module_of(node: torch.fx.Node) -> str:
    """Return the name of the module that has a node's weight."""
    return str(getattr(node.args[1], "target", "")).rpartition(".")[0]


def _of_activation(learnt: tuple[float, float] | None) -> Any:
    import torch
    from torchao.quantization.pt2e.observer import MinMaxObserver  # type: ignore[import-untyped]
    from torchao.quantization.pt2e.quantizer import (
        FixedQParamsQuantizationSpec,
        QuantizationSpec,
    )

    how = {"quant_min": 0, "quant_max": _STEPS, "qscheme": torch.per_tensor_affine}
    if learnt is None:
        seen = MinMaxObserver.with_args(eps=2**-12)
        return QuantizationSpec(torch.uint8, seen, **how)
    low, high = min(learnt[0], 0.0), max(learnt[1], 0.0)
    scale = (high - low) / _STEPS or 1.0
    return FixedQParamsQuantizationSpec(torch.uint8, scale, round(-low / scale), **how)


def _of_weight() -> Any:
    import torch
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    how = {"quant_min": -127, "quant_max": 127, "qscheme": torch.per_channel_symmetric}
    return QuantizationSpec(torch.int8, PerChannelMinMaxObserver, ch_axis=0, **how)


def _drop_unused(model: torch.fx.GraphModule) -> None:
    """Take the float32 weights out, which torchao leaves behind: they would be in the file."""
    used = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        if name not in used:
            owner, _, last = name.rpartition(".")
            delattr(model.get_submodule(owner), last)
