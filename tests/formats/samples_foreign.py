"""Sample files of other ecosystems.

`SAMPLES` are those that can be loaded. `FILES` has one of every kind that is described only, by
name: the container it should be told as, and the bytes.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from formats.building_foreign import (
    Lua,
    executorch,
    extended_header,
    field,
    gguf,
    hdf5,
    onnx_model,
    onnx_node,
    onnx_tensor,
    paddle_parameter,
    paddle_program,
)
from formats.samples import Sample

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "layers.0.weight": FLOATS,
    "layers.0.bias": np.arange(3, dtype=">f8"),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), dtype=np.uint8),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j], dtype=np.complex64),
    "half": np.array([1.5], dtype=np.float16),
}


def as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def write_array(path: Path, *, array: np.ndarray[Any, Any]) -> torch.Tensor:
    with path.open("wb") as file:  # np.save adds a suffix to a path
        np.save(file, array)
    return as_tensor(array)


def write_arrays(path: Path) -> dict[str, torch.Tensor]:
    with path.open("wb") as file:
        np.savez(file, **ARRAYS)
    return {name: as_tensor(array) for name, array in ARRAYS.items()}


SAMPLES = [
    Sample("numpy state dict", "numpy", write_arrays),
    *(
        Sample(f"numpy {name}", "numpy", partial(write_array, array=array))
        for name, array in ARRAYS.items()
    ),
]

LAMBDA = {
    "class_name": "Sequential",
    "config": {"layers": [{"class_name": "Dense", "config": {}}, {"class_name": "Lambda"}]},
}
KERAS = {
    "keras_version": "2.4.0",
    "backend": "tensorflow",
    "model_config": json.dumps(
        {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense"}] * 3}}
    ),
}
WEIGHT = onnx_tensor("w", 1, (2, 3), FLOATS.tobytes())
FACTS = [
    ("general.architecture", 8, "llama"),
    ("general.name", 8, "Tiny"),
    ("tokenizer.ggml.tokens", 9, (8, [f"token {number}" for number in range(20)])),
    ("tokenizer.ggml.scores", 9, (6, [0.5, 1.5])),
    ("llama.context_length", 4, 2048),
]
TENSORS = [
    ("output.weight", (2, 3), 0, FLOATS.tobytes()),
    ("blk.0.weight", (4, 64), 2, bytes(8 * 18)),
    ("blk.0.norm", (2,), 30, bytes(4)),
]
MODULE = {
    "epoch": 3,
    "lr": 0.5,
    "model": lambda lua: lua.instance("nn.Linear").add(
        {"weight": lambda inner: inner.tensor((2, 3), [0, 1, 2, 3, 4, 5]), "train": True}
    ),
}
LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 98000000\n"
)

FILES: dict[str, tuple[str, bytes]] = {
    "ONNX": ("onnx", onnx_model(nodes=[onnx_node("MatMul")], initializers=[WEIGHT])),
    "ONNX with a graph in a node": (
        "onnx",
        onnx_model(
            nodes=[onnx_node("If", attribute=field(6, field(1, onnx_node("Relu", domain="my"))))],
            more=field(14, field(1, "author") + field(2, "me")),
        ),
    ),
    "GGUF": ("gguf", gguf(FACTS, TENSORS)),
    "GGUF version 1": ("gguf", gguf(FACTS, TENSORS, version=1)),
    "GGUF big endian": ("gguf", gguf(FACTS, TENSORS, order=">")),
    "HDF5": ("hdf5", hdf5(KERAS, ["model_weights"], in_heap=("model_config",))),
    "HDF5 version 2": ("hdf5", hdf5(KERAS, ["model_weights"], version=2)),
    "HDF5 version 3": ("hdf5", hdf5({}, ["data"], version=3)),
    "ExecuTorch": ("executorch", executorch()),
    "ExecuTorch with a header": (
        "executorch",
        executorch(header=extended_header(100, 120, 30)),
    ),
    "Lua": ("lua-torch7", Lua().add(MODULE).data),
    "Lua in digits": ("lua-torch7", Lua(digits=True).add(MODULE).data),
    "a Lua tensor": ("lua-torch7", Lua().tensor((2, 2), [1, 2, 3, 4]).data),
    "Paddle program": ("paddle", paddle_program()),
    "Paddle parameters": (
        "paddle",
        paddle_parameter(5, (2, 3), FLOATS.tobytes()) + paddle_parameter(3, (1,), bytes(8)),
    ),
    "Git LFS": ("git-lfs-pointer", LFS),
    "HTML": ("text", b"\n<!DOCTYPE html><html><title>Sign in</title></html>"),
    "JSON": ("text", json.dumps(LAMBDA).encode()),
    "table": ("text", b"epoch,loss\n1,0.5\n2,0.25\n"),
    "picture": ("unknown", b"\x89PNG\r\n\x1a\n" + bytes(20)),
    "program": ("unknown", b"\x7fELF\x02" + bytes(20)),
    "nothing": ("unknown", b""),
    "zeros": ("unknown", bytes(5000)),
    "random": ("unknown", random.Random(4).randbytes(1000)),
}
