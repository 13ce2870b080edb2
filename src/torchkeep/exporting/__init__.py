"""Networks as deployment files, each proven by its own runtime before it has its name.

flow.py        the whole flow: `export` and `prove`
subjects.py    what is exported: a live module, a file, a run
examples.py    what it is called with
cases.py       what may vary, and which inputs it is proven with for that
targets/       one file per kind of deployment file
proving.py     a written file against the original
proof/         a written file in a process of its own, and how outputs are compared
pixels.py      an image prepared without PyTorch, as whoever deploys the file does it
publishing.py  the file takes its name, with what belongs to it
report.py      what is told of all that
records.py     what a training run keeps of it, and its report shows

The names are resolved when they are first used: the process that runs a written file imports this
package, and no PyTorch unless the runtime is PyTorch's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchkeep.exporting.flow import export, prove
    from torchkeep.exporting.proof.parity import TOLERANCES, Comparison, Tolerance
    from torchkeep.exporting.report import Exported
    from torchkeep.exporting.subjects import Subject, open_subject, taking_pixels
    from torchkeep.exporting.targets import (
        TARGETS,
        ExecuTorch,
        Onnx,
        OpenVino,
        Pt2,
        Target,
        TorchScript,
    )

_HOMES = {
    "TARGETS": "targets",
    "TOLERANCES": "proof.parity",
    "Comparison": "proof.parity",
    "ExecuTorch": "targets",
    "Exported": "report",
    "Onnx": "targets",
    "OpenVino": "targets",
    "Pt2": "targets",
    "Subject": "subjects",
    "Target": "targets",
    "Tolerance": "proof.parity",
    "TorchScript": "targets",
    "export": "flow",
    "open_subject": "subjects",
    "prove": "flow",
    "taking_pixels": "subjects",
}
"""Where each public name lives."""

__all__ = [
    "TARGETS",
    "TOLERANCES",
    "Comparison",
    "ExecuTorch",
    "Exported",
    "Onnx",
    "OpenVino",
    "Pt2",
    "Subject",
    "Target",
    "Tolerance",
    "TorchScript",
    "export",
    "open_subject",
    "prove",
    "taking_pixels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'torchkeep.exporting' has no attribute {name!r}")
    return getattr(import_module(f"torchkeep.exporting.{_HOMES[name]}"), name)
