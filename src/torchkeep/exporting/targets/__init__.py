"""The targets of `torchkeep.export`: one file each.

target.py            what a target is
onnx.py              ONNX
onnx_int8.py         ONNX with integers of 8 bits
onnx_activations.py  what stands between the layers of such a file, in integers as well
pt2.py               torch.export's own file, and its compiled form
pt2_int8.py          a graph of torch.export with integers of 8 bits
torchscript.py       TorchScript, by trace and by script
openvino.py          OpenVINO's intermediate representation
executorch.py        ExecuTorch

graphs.py            a network as a graph of torch.export, which several targets start from
exporters.py         what exporters print, say when they fail, write, and tell their makers
casting.py           a network that computes in float16 or bfloat16
arrays.py            what PyTorch runs, called with NumPy's arrays

To add one: write a file with a dataclass and `open_file`, add the class to `TARGETS`, its options
to cli/export.py, a sample to tests/exporting/samples.py, and a row to docs/exporting.md.
"""

from __future__ import annotations

from torchkeep.exporting.targets.executorch import ExecuTorch
from torchkeep.exporting.targets.onnx import Onnx
from torchkeep.exporting.targets.openvino import OpenVino
from torchkeep.exporting.targets.pt2 import Pt2
from torchkeep.exporting.targets.target import Port, Program, Target
from torchkeep.exporting.targets.torchscript import TorchScript

TARGETS: tuple[type[Target], ...] = (Onnx, Pt2, TorchScript, OpenVino, ExecuTorch)
"""Every target, in the order in which people are told of them."""

__all__ = [
    "TARGETS",
    "ExecuTorch",
    "Onnx",
    "OpenVino",
    "Port",
    "Program",
    "Pt2",
    "Target",
    "TorchScript",
]
