"""TorchScript: what PyTorch ran without Python before torch.export, by trace and by script.

A trace records what the network does with one input: branches and sizes are as they were then. A
script is a translation of the network's source text, with its branches. PyTorch has deprecated both
in favour of torch.export; there are programs, on phones above all, that take nothing else.

Source: https://docs.pytorch.org/docs/stable/jit.html
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torchkeep.errors import ExportRefused, WrongArgument
from torchkeep.exporting.targets.casting import HALVES, cast
from torchkeep.exporting.targets.exporters import quietly, reason, write_whole
from torchkeep.exporting.targets.target import Opened, Program, check_precision


@dataclass(frozen=True, slots=True)
class TorchScript:
    """A TorchScript archive."""

    name: ClassVar[str] = "torchscript"
    suffixes: ClassVar[tuple[str, ...]] = (".ts", ".torchscript", ".torchscript.pt", ".ptl")
    modules: ClassVar[tuple[str, ...]] = ("torch",)
    extra: ClassVar[str] = "export"
    beside: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")

    precision: str = "float32"
    """What is computed in."""
    by: str = "trace"
    """`trace` or `script`."""
    optimize: bool = False
    """Whether weights become constants, and BatchNorm a part of the convolution before it."""
    lite: bool = False
    """Whether it is for the lite interpreter of phones."""

    def __post_init__(self) -> None:
        check_precision(self)
        if self.by not in ("trace", "script"):
            raise WrongArgument(
                f"there is no TorchScript by {self.by!r}", advice="Choose trace or script."
            )
        if self.by == "script" and self.precision in HALVES:
            raise WrongArgument(
                f"TorchScript by script has no precision {self.precision}",
                advice="Choose by='trace' (--by trace), or float32.",
            )

    def write(self, program: Program, path: Path) -> None:
        """Write the file: see `Target.write`."""
        import torch

        program = cast(program, self.precision)
        with quietly():
            made = self._made(program)
            if self.optimize:
                # Not `optimize_for_inference`: what oneDNN makes of convolutions is in memory
                # alone, and PyTorch writes an archive without weights, which it can't read. Who
                # loads this one may call it then.
                made = torch.jit.freeze(made)
                torch.jit.run_frozen_optimizations(made)  # type: ignore[attr-defined]
            metadata = dict(program.metadata)
            if self.lite:
                path.write_bytes(made._save_to_buffer_for_lite_interpreter(_extra_files=metadata))
            else:
                write_whole(path, lambda file: torch.jit.save(made, file, _extra_files=metadata))

    def _made(self, program: Program) -> Any:
        import torch

        try:
            if self.by == "script":
                return torch.jit.script(program.model)
            with torch.no_grad():
                how: dict[str, Any] = {"check_trace": False, "strict": False}
                traced: Any = torch.jit.trace(program.model, program.args, **how)  # type: ignore[no-untyped-call]
                return traced.eval()
        except Exception as error:  # the network's own code runs, and raises anything
            raise ExportRefused(
                f"TorchScript can't {self.by} the network ({reason(error)})",
                advice="By trace takes any Python that is not to be kept (--by trace)."
                if self.by == "script"
                else "Try --to pt2, which has replaced TorchScript.",
            ) from error


def open_file(path: Path, *, threads: int) -> Opened:
    """Return a TorchScript archive, opened by PyTorch."""
    import torch

    from torchkeep.exporting.targets.arrays import as_array, running

    torch.set_num_threads(threads)
    with zipfile.ZipFile(path) as archive:
        inner = {name.partition("/")[2] for name in archive.namelist()}
    metadata = {name.removeprefix("extra/"): "" for name in inner if name.startswith("extra/")}
    with quietly():
        if "bytecode.pkl" in inner:
            from torch.jit import mobile

            lite: Any = mobile._load_for_lite_interpreter(str(path))  # type: ignore[no-untyped-call]
            return Opened(running(lite))
        module: Any = torch.jit.load(path, "cpu", _extra_files=metadata)  # type: ignore[no-untyped-call]

    def tensors() -> dict[str, Any]:
        named = [*module.named_parameters(), *module.named_buffers()]
        return {name: as_array(tensor) for name, tensor in named}

    metadata = {name: _text(value) for name, value in metadata.items()}
    return Opened(running(module), metadata=metadata, tensors=tensors)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
