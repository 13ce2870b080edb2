"""What stands between an int8 network's convolutions, computed in integers as well.

A runtime computes an activation, a sum or a pool of 8-bit numbers without leaving them, if what
goes in and what comes out of it is rounded in the file. Otherwise each of these turns all numbers
to float32 and back, which takes as long as what the convolutions save.

That is done for what stands between two layers that are quantized, and for nothing else: sums and
products inside of attention, and around normalisation, stay float32, where they were exact.

onnxruntime has no hard sigmoid of 8-bit numbers, and needs none. It is a straight line between two
ends; and so is rounding, which ends at 0 and at 255. Rounded with the scale and the zero point of
that line, the numbers are those of its result:

    HardSigmoid(x) = min(1, max(0, a x + b))
    Quantize(x, scale 1 / 255a, zero 255b) = min(255, max(0, round(255a x + 255b)))

So a squeeze-and-excitation's gate costs nothing, and HardSwish two multiplications of bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Iterable
from typing import Any

import numpy as np

BETWEEN = (
    *("Relu", "Clip", "HardSigmoid", "Sigmoid"),
    *("Add", "Mul", "Concat"),
    *("GlobalAveragePool", "AveragePool", "MaxPool"),
)
"""What onnxruntime computes in integers, or leaves out because rounding does the same."""

_SAME_NUMBERS = ("Flatten", "Reshape", "Squeeze", "Identity")
_STEPS = 255


def spell_out(graph: Any) -> None:
    """Write HardSwish as what it consists of, `x * HardSigmoid(x)`; and give every node a name."""
    from onnx import helper

    types = {value.name: value for value in graph.value_info}
    nodes = []
    for at, node in enumerate(graph.node):
        node.name = f"{at}_{node.name}"  # unlike all others
        if node.op_type == "HardSwish":
            gate = f"{node.output[0]}_gate"
            nodes.append(
                helper.make_node(
                    "HardSigmoid", node.input, [gate], f"{node.name}_gate", alpha=1 / 6, beta=0.5
                )
            )
            if node.output[0] in types:
                graph.value_info.add().CopyFrom(types[node.output[0]])
                graph.value_info[-1].name = gate
            node.op_type = "Mul"
            node.input.append(gate)
        nodes.append(node)
    _replace(graph.node, nodes)


def nodes_between(graph: Any, layers: Iterable[Any]) -> list[str]:
    """Return the names of the nodes that can compute in integers.

    Args:
        graph: with a name for every node.
        layers: the nodes that multiply by weights and are quantized.
    """
    layers = [*layers]
    makers, users = _makers(graph), _users(graph)
    results = {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    # A product's output is no integer: see `OpTypesToExcludeOutputQuantization`.
    integers = {node.name for node in layers if node.op_type.startswith("Conv")}
    into = {node.name for node in layers}
    chosen = {
        node.name: node
        for node in graph.node
        if node.op_type in BETWEEN and len(node.output) == 1 and _is_usual(node)
    }

    def is_fed(node: Any) -> bool:
        given = [makers.get(name) for name in node.input if name and name not in constants]
        return bool(given) and all(
            one is not None and one.name in integers | chosen.keys() for one in given
        )

    def is_used(node: Any) -> bool:
        return not results & {*node.output} and all(
            use.name in into | chosen.keys() or (use.op_type in _SAME_NUMBERS and is_used(use))
            for use in users[node.output[0]]
        )

    while unfit := [node for node in chosen.values() if not (is_fed(node) and is_used(node))]:
        for node in unfit:
            del chosen[node.name]
    return [*chosen]


def sources_of_pools(graph: Any, between: Collection[str]) -> dict[str, str]:
    """Return by what comes out of a maximum over integers what goes in: one range serves both."""
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "MaxPool" and node.name in between:
            found[node.output[0]] = found.get(node.input[0], node.input[0])
    return found


def round_for_hard_sigmoids(graph: Any, limited: Container[str] = ()) -> None:
    """Have rounding compute the hard sigmoids of a quantized graph: see above.

    Args:
        graph: the graph, changed in place.
        limited: tensors that end at a limit because their rounding does: see `output_limits`. That
            rounding is left as it is.
    """
    makers, users = _makers(graph), _users(graph)
    results = {value.name for value in graph.output}
    nodes: list[Any] = []
    dropped: list[Any] = []
    for node in graph.node:
        opened, closed = makers.get(node.input[0]), users[node.output[0]]
        if (
            node.op_type == "HardSigmoid"
            and opened is not None
            and opened.op_type == "DequantizeLinear"
            and [use.op_type for use in closed] == ["QuantizeLinear"]
            and _is_usual(node)
        ):
            alpha, beta = _line_of(node)
            rounding = makers[opened.input[0]]
            if (
                len(users[opened.input[0]]) == len(users[opened.output[0]]) == 1
                and opened.output[0] not in results
                and rounding.input[0] not in limited
                and rounding.input[1:] == opened.input[1:]  # else it is another one's line already
            ):
                # Nobody else has these numbers: they are rounded so to begin with.
                dropped += [opened, node, closed[0]]
            else:
                nodes.append(_become_sum(graph, node, _STEPS * beta, _STEPS * alpha))
                rounding = closed[0]
            name = f"line_{alpha:.6g}_{beta:.6g}"
            rounding.input[1:] = _rounding(graph, name, 1 / (_STEPS * alpha), round(_STEPS * beta))
            for use in users[closed[0].output[0]]:
                use.input[:] = [rounding.output[0], *_rounding(graph, "gate", 1 / _STEPS, 0)]
        nodes.append(node)
    _replace(graph.node, [node for node in nodes if not any(node is each for each in dropped)])


def _become_sum(graph: Any, node: Any, zero: float, steps: float) -> Any:
    """Change a node, so that numbers go from one rounding to another; return what it adds.

    That is what the zero point, which is no whole number, loses by being one: half a step.
    """
    from onnx import helper

    node.op_type = "Add"
    del node.attribute[:]
    more = (zero - round(zero)) / steps
    rest, name = f"rest_{more:.6g}", f"{node.name}_rest"
    given = [_constant(graph, rest, np.uint8(more > 0))]
    given += _rounding(graph, rest, abs(more) or 1.0, int(more < 0))
    node.input.append(name)
    return helper.make_node("DequantizeLinear", given, [name], name)


def _is_usual(node: Any) -> bool:
    """Whether a node, if it is a hard sigmoid, rises from 0 to 1, and begins within 0 and 1."""
    alpha, beta = _line_of(node)
    return node.op_type != "HardSigmoid" or (alpha > 0 and 0 <= beta <= 1)


def _line_of(node: Any) -> tuple[float, float]:
    given = {item.name: item.f for item in node.attribute}
    return given.get("alpha", 0.2), given.get("beta", 0.5)


def _rounding(graph: Any, name: str, scale: float, zero: int) -> list[str]:
    return [
        _constant(graph, f"{name}_scale", np.float32(scale)),
        _constant(graph, f"{name}_zero_point", np.uint8(zero)),
    ]


def _constant(graph: Any, name: str, value: Any) -> str:
    """Return the name of a constant, which is there once."""
    from onnx import numpy_helper

    name = f"hard_sigmoid_{name}"
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def output_limits(graph: Any) -> dict[str, tuple[float, float]]:
    """Return what is within which limits, of what is left out because rounding ends there."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}

    def end(node: Any, at: int, usual: float) -> float:
        name = node.input[at] if len(node.input) > at else ""
        return float(numpy_helper.to_array(constants[name])) if name in constants else usual

    found = {}
    for node in graph.node:
        if node.op_type == "Relu":
            found[node.output[0]] = 0.0, np.inf
        elif node.op_type == "Clip":
            found[node.output[0]] = end(node, 1, -np.inf), end(node, 2, np.inf)
    return found


def _makers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.node for name in node.output}


def _users(graph: Any) -> defaultdict[str, list[Any]]:
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def _replace(items: Any, others: list[Any]) -> None:
    copies = [type(one)() for one in others]
    for copy, one in zip(copies, others, strict=True):
        copy.CopyFrom(one)
    del items[:]
    items.extend(copies)
