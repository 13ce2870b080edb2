"""What each kind of file, archive and folder is good for: the one table of all of them.

A reader says how a container is read. What that makes of it (a program that runs, a file that
`torch.load` takes, no model at all) is asked at many places, and stands here. A new format, a kind
of archive and a kind of folder have a row each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True)
class Container:
    """One kind of file, archive or folder."""

    name: str
    """What it is called in reports, such as `torch-zip`."""
    use: Literal["values", "program", "files", "none", "unknown"]
    """What it is for: values of which tensors are a part, a network as a program, other files. It
    is `none` for what nobody loads as a model, and `unknown` where nobody can tell."""
    runs: str = ""
    """Why it holds code by nature, whatever its pickles name; empty if it doesn't."""
    defines_script_names: bool = False
    """Whether it defines the classes named `__torch__....` itself."""
    weights_only: bool | None = None
    """Whether `torch.load(weights_only=True)` takes it if it takes all names in it; None if no
    release reads the format at all."""
    is_one_state_dict: bool = False
    """Whether it holds one state dict and nothing else, whatever the tensors' names."""
    is_told_by_header: bool = False
    """Whether it is no flaw that only its header is read."""
    tells_of_pickles: bool = False
    """Whether its reader tells what a pickle at the file's start would do."""
    may_be_tar: bool = False
    """Whether it is a tar if it starts as one."""
    framework: str = ""
    """The framework that alone writes it; empty where several do."""

    @property
    def is_model(self) -> bool:
        """Whether it is of a kind that may hold a model."""
        return self.use not in ("none", "unknown")


_TORCHSCRIPT = "it is a TorchScript program, which runs when it is "

_ALL = (
    # What torch.save writes and wrote, and plain pickles.
    Container("torch-zip", "values", weights_only=True),
    Container("torch-legacy", "values", weights_only=True, tells_of_pickles=True),
    Container("torch-tar", "values", weights_only=False, may_be_tar=True),
    Container("pickle", "values", tells_of_pickles=True),
    # Programs of PyTorch's.
    Container(
        "torchscript",
        "program",
        runs=_TORCHSCRIPT + "loaded",
        defines_script_names=True,
        weights_only=False,
        is_told_by_header=True,
    ),
    Container(
        "torchscript-lite",
        "program",
        runs=_TORCHSCRIPT + "used",
        defines_script_names=True,
        weights_only=False,
        is_told_by_header=True,
    ),
    Container("torch-export", "program"),
    Container(
        "torch-package",
        "program",
        runs="it is a package with Python source, which is imported when it is loaded",
        is_told_by_header=True,
    ),
    Container(
        "torch-cpp",
        "values",
        runs="it is a program of PyTorch's C++ interface, which runs when it is loaded",
        defines_script_names=True,
        is_told_by_header=True,
    ),
    # Tensors and arrays.
    Container("safetensors", "values", is_one_state_dict=True),
    Container("safetensors-sharded", "values", is_one_state_dict=True),
    Container("torch-sharded", "values", is_one_state_dict=True),
    Container("numpy", "values", is_told_by_header=True),
    # Other ecosystems.
    Container("gguf", "values", is_one_state_dict=True, is_told_by_header=True),
    Container("onnx", "program", is_one_state_dict=True, is_told_by_header=True),
    Container(
        "hdf5",
        "values",
        runs="Keras runs the functions in such a file when it loads it",
        is_told_by_header=True,
    ),
    Container(
        "executorch",
        "program",
        runs="it is a program of ExecuTorch, which may call other libraries",
        is_told_by_header=True,
    ),
    Container("paddle", "values", is_told_by_header=True, framework="PaddlePaddle"),
    Container(
        "lua-torch7",
        "values",
        runs="Lua Torch runs the functions in such a file when they are used",
        is_told_by_header=True,
    ),
    # What holds other files.
    Container("archive", "files", may_be_tar=True),
    Container("folder", "files"),
    Container("dcp", "values"),
    Container("torchkeep-checkpoint", "values", framework="torchkeep"),
    Container("torchkeep-run", "files", framework="torchkeep"),
    # No models.
    Container("git-lfs-pointer", "none"),
    Container("text", "none", tells_of_pickles=True),
    Container("unknown", "unknown", tells_of_pickles=True),
)

CONTAINERS: Mapping[str, Container] = MappingProxyType({item.name: item for item in _ALL})
"""Every container by its name."""
