"""ExecuTorch's program, `.pte`: for phones and small devices, run by a small runtime in C++.

What XNNPACK has is computed by it, and the rest by ExecuTorch's own portable operators. Memory is
planned when the file is written: a size that may vary has a largest value, and one image takes the
memory of the largest batch. A `.pte` has no place for metadata.

Source: https://docs.pytorch.org/executorch/stable, and `executorch/exir` of release 1.5.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torchkeep.errors import ExportRefused, WrongArgument
from torchkeep.exporting.targets.exporters import quietly, reason
from torchkeep.exporting.targets.graphs import graph_of
from torchkeep.exporting.targets.target import VALIDATION_BATCH, Opened, Program, check_precision


@dataclass(frozen=True, slots=True)
class ExecuTorch:
    """A `.pte` file."""

    name: ClassVar[str] = "executorch"
    suffixes: ClassVar[tuple[str, ...]] = (".pte",)
    modules: ClassVar[tuple[str, ...]] = ("executorch",)
    extra: ClassVar[str] = "executorch"
    beside: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("float32",)

    precision: str = "float32"
    """What is computed in."""
    largest_batch: int = VALIDATION_BATCH
    """The largest batch, where it may vary."""
    largest_size: int | None = None
    """The largest value of any other size that may vary; None for twice the example's."""

    def __post_init__(self) -> None:
        check_precision(self)
        if self.largest_batch < VALIDATION_BATCH:
            raise WrongArgument(
                f"largest_batch is {self.largest_batch}, and has to be at least "
                f"{VALIDATION_BATCH}, which the proof runs",
                advice="For one image at a time, dynamic='none' (--dynamic none) takes the least "
                "memory.",
            )

    def write(self, program: Program, path: Path) -> None:
        """Write the file: see `Target.write`."""
        largest = self._largest(program)
        with quietly(), _keeping_bounds():
            graph = graph_of(program, largest)
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower

            try:
                lowered = to_edge_transform_and_lower(graph, partitioner=[XnnpackPartitioner()])
                made = lowered.to_executorch()
            except Exception as error:  # its passes' own, of many kinds
                raise ExportRefused(
                    f"ExecuTorch has nothing for a part of the network ({reason(error)})",
                    advice=_advice(program),
                ) from error
        _check_bounds(made, program, largest)
        with path.open("wb") as file:
            made.write_to_file(file)

    def _largest(self, program: Program) -> list[dict[int, int]]:
        return [
            {
                at: self.largest_batch if at == 0 else self.largest_size or 2 * arg.shape[at]
                for at in dims
            }
            for arg, dims in zip(program.args, program.dynamic, strict=True)
        ]


@contextlib.contextmanager
def _keeping_bounds() -> Iterator[None]:
    """Keep PyTorch from asking whether a batch is below 16.

    It does so to choose the library of a convolution, and notes the answer as the dimension's new
    bound: the file would refuse 16 images, whatever was asked for.
    """
    from torch.backends import mkldnn, nnpack

    with mkldnn.flags(enabled=False), nnpack.flags(enabled=False):
        yield


def _advice(program: Program) -> str:
    if any(program.dynamic):
        return "It may be what varies: try --dynamic none. Or another target: --to onnx."
    return "Try another target: --to onnx."


def _check_bounds(made: Any, program: Program, largest: list[dict[int, int]]) -> None:
    """Make sure that what may vary goes as far as it is said to."""
    (plan,) = made.executorch_program.execution_plan
    tensors = [plan.values[at].val for at in plan.inputs]
    for name, tensor, most in zip(program.names, tensors, largest, strict=True):
        for at, size in most.items():
            if tensor.sizes[at] < size:
                raise ExportRefused(
                    f"dimension {at} of {name} was to take any size up to {size}, and ExecuTorch "
                    f"has it up to {tensor.sizes[at]}",
                    advice="Export it for one size: dynamic='none' (--dynamic none).",
                )


def open_file(path: Path, *, threads: int) -> Opened:
    """Return a `.pte` file, opened by ExecuTorch; PyTorch hands its tensors over, and no more."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    from torchkeep.exporting.targets.arrays import running

    portable_lib._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    method: Any = program.load_method("forward")
    return Opened(running(lambda *args: method.execute(args)))
