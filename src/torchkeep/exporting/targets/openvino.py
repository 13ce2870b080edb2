"""OpenVINO's intermediate representation, IR: `<name>.xml` is the graph, `<name>.bin` the weights.

It is made of ONNX, which OpenVINO reads by itself: of a graph of torch.export it keeps no size that
is fixed, and needs up to four times as many operators.

Source: https://docs.openvino.ai, and `openvino/frontend`, `openvino/tools/ovc` of release 2026.4.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from torchkeep.errors import ExportRefused, WrongArgument
from torchkeep.exporting.targets.exporters import first_line
from torchkeep.exporting.targets.onnx import Onnx
from torchkeep.exporting.targets.target import (
    Arrays,
    Opened,
    Port,
    Program,
    check_precision,
)
from torchkeep.wording import printable

_LAYOUT = {"batch": "N", "height": "H", "width": "W"}
"""What OpenVINO calls the dimensions that may vary; servers and its tools look for these."""


@dataclass(frozen=True, slots=True)
class OpenVino:
    """An `.xml` file, and its `.bin` of the same name beside it."""

    name: ClassVar[str] = "openvino"
    suffixes: ClassVar[tuple[str, ...]] = (".xml",)
    modules: ClassVar[tuple[str, ...]] = ("openvino", "onnx", "onnxscript")
    extra: ClassVar[str] = "export"
    beside: ClassVar[tuple[str, ...]] = ("{stem}.bin",)
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "int8")

    precision: str = "float32"
    """What the weights are. Of float16 the CPU makes float32 again, and computes in that; with int8
    it computes in integers, as an `.onnx` file does (`onnx_int8.py`)."""
    opset: int | None = None
    """The version of ONNX's operators on the way, from 18 on; None for the exporter's choice."""

    def __post_init__(self) -> None:
        check_precision(self)

    def write(self, program: Program, path: Path) -> None:
        """Write the files: see `Target.write`."""
        if path.suffix != ".xml":
            raise WrongArgument(
                f"{printable(path.name)}: OpenVINO reads a graph from a file called .xml alone",
                advice="Call it so.",
            )
        openvino = _openvino()
        # Within the folder of the file, which is on a disk that has the space.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            onnx = Path(folder) / "network.onnx"
            # float16 is made at the end: OpenVINO keeps the graph in float32 then.
            precision = "int8" if self.precision == "int8" else "float32"
            Onnx(precision, opset=self.opset).write(program, onnx)
            try:
                model = openvino.Core().read_model(onnx)
            except Exception as error:  # the reader's own, of many kinds
                raise ExportRefused(
                    f"OpenVINO has nothing for a part of the network: {_reason(error)}",
                    advice="Another version of ONNX's operators may help (--opset), or --to onnx.",
                ) from error
            _name_dimensions(model, program)
            # Asked for by name: without, it halves the weights, and says nothing of it.
            openvino.save_model(model, path, compress_to_fp16=self.precision == "float16")
            del model  # It reads the file in the folder, which Windows could not delete.


def _openvino() -> Any:
    """Return OpenVINO, imported without its telemetry.

    Its import alone asks google-analytics.com to count it, and leaves an identifier of the user in
    `~/intel`. It does without where the package for that is missing, and so it is for that moment.
    """
    name, modules = "openvino_telemetry", cast("dict[str, Any]", sys.modules)
    before = modules.get(name)
    modules[name] = None
    try:
        import openvino  # type: ignore[import-untyped]
    finally:
        del modules[name]
        if before is not None:
            modules[name] = before
    return openvino


def _name_dimensions(model: Any, program: Program) -> None:
    """Note which dimensions are the batch and an image's sizes, in OpenVINO's own way."""
    layout = _openvino().Layout
    for parameter, dims in zip(model.get_parameters(), program.dynamic, strict=True):
        if dims:
            rank = len(parameter.get_partial_shape())
            names = [_LAYOUT.get(dims.get(at, ""), "?") for at in range(rank)]
            parameter.set_layout(layout(f"[{','.join(names)}]"))


def open_file(path: Path, *, threads: int) -> Opened:
    """Return an IR, opened by OpenVINO on the CPU."""
    openvino = _openvino()
    core = openvino.Core()
    how = {
        "INFERENCE_NUM_THREADS": threads,
        # Left alone, it computes in bfloat16 on processors that have it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", how)
    except Exception as error:  # the runtime's own, of many kinds
        raise RuntimeError(_reason(error)) from None

    def run(arrays: Arrays) -> Arrays:
        found = compiled(list(arrays))
        return [found[at] for at in range(len(compiled.outputs))]

    return Opened(run, tuple(map(_port, model.get_parameters())), _metadata(model))


def _metadata(model: Any) -> Mapping[str, str]:
    """Return what the ONNX file said of itself: it is kept under `framework`."""
    if not model.has_rt_info("framework"):
        return {}
    metadata: Mapping[str, str] = model.get_rt_info("framework").value
    return metadata


def _port(parameter: Any) -> Port:
    (output,) = parameter.outputs()
    told = parameter.get_layout().to_string().strip("[]").split(",")
    called = {letter: name for name, letter in _LAYOUT.items()}
    shape = tuple(
        f"dim_{at}" if dim.is_dynamic else dim.get_length()
        for at, dim in enumerate(output.get_partial_shape())
    )
    if len(told) == len(shape):
        shape = tuple(
            called.get(letter, size) if isinstance(size, str) else size
            for letter, size in zip(told, shape, strict=True)
        )
    return Port(output.get_any_name(), output.get_element_type().to_dtype().name, shape)


def _reason(error: Exception) -> str:
    """Return the line of a message that says what is wrong; others say where it was raised."""
    lines = str(error).splitlines()
    listed = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    said = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return first_line("\n".join(listed or said))
