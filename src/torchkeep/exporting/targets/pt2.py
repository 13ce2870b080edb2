"""torch.export's own file, `.pt2`: a graph and its weights, run by PyTorch without the classes.

With `compile` it is machine code made ahead of time by AOTInductor: faster to start and to run, for
this kind of processor alone. PyTorch promises to read a `.pt2` of an older release in general, and
not of every one: keep the weights as well.

float16 and bfloat16 make a file of half the size, int8 one of a quarter (`pt2_int8.py`). PyTorch
opens the latter once `torch.ao.quantization.fx._decomposed` is imported, which has its operators.

Source: https://docs.pytorch.org/docs/stable/export.html and `torch.compiler_aot_inductor`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torchkeep.errors import ExportRefused, MissingExtra, WrongArgument
from torchkeep.exporting.targets.casting import cast
from torchkeep.exporting.targets.exporters import quietly, reason, write_whole
from torchkeep.exporting.targets.graphs import graph_of
from torchkeep.exporting.targets.target import Arrays, Opened, Program, check_precision

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True, slots=True)
class Pt2:
    """A `.pt2` file."""

    name: ClassVar[str] = "pt2"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    modules: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str] = "export"
    beside: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16", "int8")

    precision: str = "float32"
    """What is computed in."""
    compile: bool = False
    """Whether to compile it ahead of time, for which a C++ compiler must be there."""

    def __post_init__(self) -> None:
        check_precision(self)
        if self.compile and self.precision == "int8":
            raise WrongArgument(
                "a compiled .pt2 has no precision int8",
                advice="Leave out compile, or choose bfloat16, or --to onnx.",
            )

    def write(self, program: Program, path: Path) -> None:
        """Write the file: see `Target.write`."""
        import torch

        graph = self._graph(program)
        for node in graph.graph_module.graph.nodes:
            # It has the paths of its author's folders, and lines of the source.
            node.meta.pop("stack_trace", None)
        with quietly():
            if not self.compile:
                metadata = dict(program.metadata)
                write_whole(path, lambda file: torch.export.save(graph, file, extra_files=metadata))
                return
            try:
                torch._inductor.aoti_compile_and_package(
                    graph,
                    package_path=str(path),
                    inductor_configs={"aot_inductor.metadata": dict(program.metadata)},
                )
            except Exception as error:  # the compiler's and its own
                raise ExportRefused(
                    f"it can't be compiled ({reason(error)})",
                    advice="Is a C++ compiler installed? Without --compile none is needed.",
                ) from error

    def _graph(self, program: Program) -> ExportedProgram:
        if self.precision != "int8":
            return graph_of(cast(program, self.precision))
        if find_spec("torchao") is None:
            raise MissingExtra.for_modules("the target pt2 of int8", ["torchao"], "export")
        from torchkeep.exporting.targets.pt2_int8 import quantized

        return quantized(program)


def open_file(path: Path, *, threads: int) -> Opened:
    """Return a `.pt2` file, opened by PyTorch."""
    import torch

    from torchkeep.exporting.targets.arrays import running

    torch.set_num_threads(threads)
    if is_compiled(path):
        package = torch._inductor.aoti_load_package(str(path))
        said = package.loader.get_metadata().items()
        # The others say what machine it was compiled for.
        mine = {name: text for name, text in said if not name.startswith("AOTI_")}
        return Opened(running(package), metadata=mine)
    if _is_quantized(path):
        # It has the operators of a quantized graph: PyTorch registers them when it is imported.
        import_module("torch.ao.quantization.fx._decomposed")
    names = _extra_names(path)
    metadata = dict.fromkeys(names, "")
    module = torch.export.load(path, extra_files=metadata).module()
    return Opened(running(module), metadata=dict(metadata), layers=partial(_layers, module))


def _layers(module: Any, arrays: Arrays) -> dict[str, Any]:
    """Return the outputs of the original's modules: of the last node within each."""
    import torch

    from torchkeep.exporting.targets.arrays import as_array

    found: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                for name, _ in n.meta.get("nn_module_stack", {}).values():
                    found[name] = as_array(result.clone())
            return result

    with torch.no_grad():
        Recorder(module).run(*map(torch.from_numpy, arrays))
    return found


def is_compiled(path: Path) -> bool:
    """Whether a `.pt2` holds machine code instead of a graph."""
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def _is_quantized(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        graphs = [name for name in archive.namelist() if "/models/" in name]
        return any(b"quantized_decomposed" in archive.read(name) for name in graphs)


def _extra_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        inner = [name.partition("/")[2] for name in archive.namelist()]
    return [name.removeprefix("extra/") for name in inner if name.startswith("extra/")]
