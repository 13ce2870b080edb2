"""ONNX: a graph that most runtimes and clouds read, without PyTorch.

It is made by PyTorch's exporter on torch.export. Weights are in the file itself up to 1.5 GB, and
beside it in `<name>.data` above, or if asked for: a file of ONNX can't be larger than 2 GB.

With `precision` the weights are smaller: float16 is half as large, and as fast in onnxruntime as
float32, which computes in that on processors; int8 is a quarter (`onnx_int8.py`). bfloat16 is
not offered: onnxruntime has no convolution in it on processors (`Conv(22)`, tried with 1.32).

Source: https://onnx.ai/onnx/repo-docs/IR.html and `torch/onnx/_internal/exporter`.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torchkeep.errors import ExportRefused, WrongArgument
from torchkeep.exporting.targets.casting import cast
from torchkeep.exporting.targets.exporters import import_onnxruntime, quietly, reason
from torchkeep.exporting.targets.graphs import graph_of
from torchkeep.exporting.targets.onnx_int8 import METHODS, dynamically_quantized, quantized
from torchkeep.exporting.targets.target import (
    Arrays,
    Opened,
    Port,
    Program,
    check_precision,
)
from torchkeep.wording import printable

OLDEST_OPSET = 18
LARGEST_INLINE_NBYTES = 1_500_000_000
"""Of weights within the file: protobuf takes 2 GiB in all."""


@dataclass(frozen=True, slots=True)
class Onnx:
    """An `.onnx` file."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    modules: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "export"
    beside: ClassVar[tuple[str, ...]] = ("{name}.data",)
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8", "int8-dynamic")

    precision: str = "float32"
    """What is computed in."""
    opset: int | None = None
    """The version of ONNX's operators, from 18 on; None for the exporter's own choice."""
    external_data: bool = False
    """Whether the weights are in a file beside it whatever their size is."""
    calibration_method: str = "minmax"
    """How int8 takes the range of a layer's inputs from what it has seen: `minmax` for all of it,
    `percentile` or `entropy` without what is rare."""

    def __post_init__(self) -> None:
        check_precision(self)
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise WrongArgument(
                f"opset is {self.opset}, and PyTorch's exporter writes {OLDEST_OPSET} and later",
                advice="onnx.version_converter makes an older one of the file.",
            )
        if self.calibration_method not in METHODS:
            raise WrongArgument(
                f"there is no calibration by {self.calibration_method!r}",
                advice=f"Choose one of {', '.join(METHODS)}.",
            )

    def write(self, program: Program, path: Path) -> None:
        """Write the file: see `Target.write`."""
        program = cast(program, self.precision)
        made = self._made(program)
        tensors = [value.const_value for value in made.model.graph.initializers.values()]
        nbytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        external = self.external_data or nbytes > LARGEST_INLINE_NBYTES
        if self.precision.startswith("int8"):
            self._write_int8(made, program, path, external)
        else:
            made.save(str(path), external_data=external)

    def _made(self, program: Program) -> Any:
        import torch

        graph = graph_of(program)
        _refuse_numbers(graph, program.outputs)
        with quietly():
            try:
                graph = _with_plain_attention(graph)
                made = torch.onnx.export(
                    graph,
                    (),
                    dynamo=True,
                    opset_version=self.opset,
                    input_names=list(program.names),
                    output_names=_unlike(program.outputs, program.names),
                    verbose=False,
                )
            except Exception as error:  # the exporter's own, of many kinds
                raise ExportRefused(
                    f"ONNX has nothing for a part of the network: {reason(_cause(error))}",
                    advice="A newer opset may have it (--opset), or another target.",
                ) from error
        assert made is not None  # noqa: S101 (it is None only with a file's name given)
        model = made.model
        _name_dimensions(model, program)
        _name_pools(model.graph)
        _drop_unused(model.graph)
        model.metadata_props.update(program.metadata)
        for node in model.graph:
            # They have the paths of its author's folders, and lines of the source.
            for key in ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"):
                node.metadata_props.pop(key, None)
        return made

    def _write_int8(self, made: Any, program: Program, path: Path, external: bool) -> None:
        import onnx

        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source = Path(folder) / "float32.onnx"
            made.save(str(source), external_data=external)
            if self.precision == "int8":
                method = self.calibration_method
                model = quantized(source, program, method=method, external=external)
            else:
                model = dynamically_quantized(source, program, external=external)
        beside = self.beside[0].format(name=path.name)
        onnx.save(model, path, save_as_external_data=external, location=beside)


def _with_plain_attention(graph: Any) -> Any:
    """Write attention out, where it is not of `[n, heads, tokens, width]`.

    PyTorch's exporter has no other. Hiera's, within windows, has five dimensions.
    """
    import torch

    attention = torch.ops.aten.scaled_dot_product_attention.default
    nodes = [node for node in graph.graph.nodes if node.target is attention]
    if all(arg.meta["val"].dim() == 4 for node in nodes for arg in node.args[:3]):
        return graph

    def written_out(q: Any, k: Any, v: Any, mask: Any = None, *args: Any, **how: Any) -> Any:
        if mask is not None and mask.dtype == torch.bool:
            # The operator below takes numbers to add, and would add these.
            mask = torch.where(mask, 0.0, -torch.inf).to(q.dtype)
        return torch.ops.aten._scaled_dot_product_attention_math.default(
            q, k, v, mask, *args, **how
        )[0]

    return graph.run_decompositions({attention: written_out})


def _refuse_numbers(graph: Any, names: Sequence[str]) -> None:
    """Refuse outputs that are constants of Python's: a file returns tensors alone.

    What is None has no output in the file, and a number that follows from sizes is a tensor there.

    Raises:
        ExportRefused: there are some.
    """
    from torch.export.graph_signature import ConstantArgument, OutputKind

    specs = graph.graph_signature.output_specs
    values = [spec.arg for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    constants = [arg.value if isinstance(arg, ConstantArgument) else ... for arg in values]
    if any(isinstance(value, str) for value in constants):
        raise ExportRefused(
            "one of its outputs is a text, and ONNX returns tensors alone",
            advice="Wrap the network in a module that returns its tensors.",
        )
    pairs = zip(names, (value for value in constants if value is not None), strict=False)
    found = [name for name, value in pairs if value is not ...]
    if found:
        raise ExportRefused(
            f"its output {printable(found[0])} is no tensor, and ONNX returns tensors alone",
            advice="Wrap the network in a module that returns its tensors.",
        )


def _unlike(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return names of outputs that no input has, since in a graph no two values have one name."""
    made: list[str] = []
    for name in names:
        while name in taken or name in made:
            name = f"{name}_output"
        made.append(name)
    return made


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _name_dimensions(model: Any, program: Program) -> None:
    """Call the dimensions that may vary by their names, instead of `s77`."""
    import onnx_ir

    names: dict[str, str] = {}
    for value, dims in zip(model.graph.inputs, program.dynamic, strict=True):
        for at, name in dims.items():
            symbol = value.shape[at]
            if not isinstance(symbol, onnx_ir.SymbolicDim):
                raise ExportRefused(
                    f"dimension {at} of {value.name} was to take any size, and the file has it "
                    f"fixed at {symbol}",
                    advice="Export it for one size (--dynamic none), or mend the network.",
                )
            names[str(symbol.value)] = name
    for value in _values(model.graph):
        if value.shape is None:
            continue
        value.shape = onnx_ir.Shape(
            [
                names.get(str(dim.value), dim.value)
                if isinstance(dim, onnx_ir.SymbolicDim)
                else dim
                for dim in value.shape
            ]
        )


def _name_pools(graph: Any) -> None:
    """Write a mean over an image's height and width as the pool that it is.

    Runtimes compute a pool in whatever layout they have the image in. For a mean, onnxruntime turns
    it around and back: without, a MobileNetV3 is 1.05 times as fast. It has none of float64.
    """
    import onnx_ir

    for node in graph:
        if node.op_type != "ReduceMean" or len(node.inputs) != 2:
            continue
        image, axes = node.inputs
        rank = len(image.shape) if image.shape is not None else 0
        if image.dtype == onnx_ir.DataType.DOUBLE:
            continue
        if rank != 4 or axes.const_value is None or not node.attributes.get_int("keepdims", 1):
            continue
        if sorted(int(at) % rank for at in axes.const_value.numpy().ravel()) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            node.resize_inputs(1)
            node.attributes.clear()


def _drop_unused(graph: Any) -> None:
    """Leave out constants that nothing uses: onnxruntime warns of each whenever the file is opened.

    The axes of a mean that became a pool are such.
    """
    for name, value in [*graph.initializers.items()]:
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _values(graph: Any) -> list[Any]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *made]


def open_file(path: Path, *, threads: int) -> Opened:
    """Return an ONNX file, opened by onnxruntime on the CPU."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(arrays: Arrays) -> Arrays:
        found: list[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
        return [array.astype("float32") if array.dtype == "float16" else array for array in found]

    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    ports = tuple(map(_port, session.get_inputs()))
    return Opened(run, ports, metadata, layers=partial(_layers, path))


def _layers(path: Path, arrays: Arrays) -> dict[str, Any]:
    """Return the outputs of the original's modules: of the last node within each.

    The exporter has written down which modules a node is of (`name_scopes`).
    """
    import onnx

    model = onnx.load(path)
    places: dict[str, str] = {}
    for node in model.graph.node:
        props = {item.key: item.value for item in node.metadata_props}
        for name in ast.literal_eval(props.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]:
            places[name] = node.output[0]
    known = {value.name for value in model.graph.output}
    chosen = sorted(set(places.values()) - known)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chosen)
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    wanted = sorted(set(places.values()))
    found = session.run(wanted, dict(zip(names, arrays, strict=True)))
    by_place = dict(zip(wanted, found, strict=True))
    return {name: by_place[place] for name, place in places.items()}


_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


def _port(port: Any) -> Port:
    dtype = _DTYPES.get(port.type, port.type.removeprefix("tensor(").removesuffix(")"))
    return Port(port.name, dtype, tuple(port.shape))
