"""Sample files for the conformance suite, written by the libraries that own the formats.

A sample writes a file and returns what it holds, as live Python and torch objects. What today's
libraries don't write any more is put together byte by byte, in the functions of `building`.
To add a format, add its samples to `SAMPLES`: the suite does the rest.
"""

from __future__ import annotations

import copy
import pickle
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from formats.building import MAGIC, legacy_file, old_tensor, rewrite_zip, storage

VANISHING = """
from torch import nn
import torch

class Vanished(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.register_buffer("scale", torch.full((2,), 0.5))
"""


@dataclass(frozen=True)
class Sample:
    """A file or a folder of a kind, and what it holds."""

    name: str
    container: str
    write: Callable[[Path], Any]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def vanished() -> nn.Module:
    """Return a model whose class can't be imported once `forget` has run."""
    module = types.ModuleType("vanished_module")
    sys.modules["vanished_module"] = module
    exec(VANISHING, module.__dict__)
    return module.Vanished(5)


def checkpoint() -> dict[str, Any]:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.125)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {
        "epoch": 3,
        "loss": 0.5,
        "model_state_dict": net.state_dict(),
        "ema_state_dict": copy.deepcopy(net).state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "args": {"lr": 0.125, "name": "run", "classes": ["a", "b"]},
    }


def odd_tensors() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32)
    parameter = nn.Parameter(torch.ones(2), requires_grad=False)
    return {
        "base": base,
        "view": base[6:18].view(3, 4),
        "transposed": base.view(4, 6).t(),
        "strided": base[::5],
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "same": base,
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "parameter": parameter,
        "needs_grad": torch.ones(1, requires_grad=True),
        "storage_view": torch.arange(4)[2:],
        "list": [base[0], (base[1], None)],
    }


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
NEWER_DTYPES = [
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]


def every_dtype(dtypes: list[torch.dtype]) -> dict[str, torch.Tensor]:
    numbers = torch.tensor([0, 1, 1, 0, 1, 1])
    return {str(dtype): numbers.to(dtype).view(2, 3) for dtype in dtypes}


def annotated() -> dict[str, torch.Tensor]:
    """Return tensors that carry attributes, which changes how they are pickled."""
    plain, parameter = torch.arange(3.0), nn.Parameter(torch.ones(2))
    plain.note, parameter.note = "n", "p"  # type: ignore[attr-defined]
    return {"plain": plain, "parameter": parameter}


class Named(torch.Tensor):
    """A tensor of a class of its own."""


def sparse_tensors() -> dict[str, torch.Tensor]:
    eye = torch.eye(4)
    return {
        "coo": eye.to_sparse(),
        "coo with values": torch.sparse_coo_tensor([[0, 2]], [[1.0, 2.0], [3.0, 4.0]], (3, 2)),
        "csr": eye.to_sparse_csr(),
        "csc": eye.to_sparse_csc(),
        "bsr": eye.to_sparse_bsr((2, 2)),
        "bsc": eye.to_sparse_bsc((2, 2)),
    }


def quantized_tensors() -> dict[str, torch.Tensor]:
    scales, zeros = torch.tensor([0.5, 0.25]), torch.zeros(2)
    return {
        "q": torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8),
        "channels": torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.quint8),
    }


def wrapped(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in model().state_dict().items()}


def lightning() -> dict[str, Any]:
    saved = checkpoint()
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(wrapped("model.")),
        "optimizer_states": [saved["optimizer_state_dict"]],
        "lr_schedulers": [saved["scheduler"]],
        "hyper_parameters": {"lr": 0.125},
    }


TREES: dict[str, Callable[[], Any]] = {
    "state dict": lambda: model().state_dict(),
    "plain dict": lambda: dict(model().state_dict()),
    "whole model": vanished,
    "checkpoint": checkpoint,
    "DataParallel": lambda: nn.DataParallel(model()).state_dict(),
    "torch.compile": lambda: wrapped("_orig_mod."),
    "DDP in torch.compile": lambda: wrapped("_orig_mod.module."),
    "FSDP": lambda: wrapped("_fsdp_wrapped_module."),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(model()).state_dict(),
    "Lightning": lightning,
    "odd tensors": odd_tensors,
    "dtypes": lambda: every_dtype(DTYPES),
    "annotated": annotated,
    "one tensor": lambda: torch.arange(6).view(2, 3),
    "a storage": lambda: [torch.FloatStorage([1.0, 2.0]), torch.ones(2, dtype=torch.int16)],
    "no tensor": lambda: {"epoch": 1, "name": "x", "sizes": torch.Size([2]), "f": torch.float16},
    "quantized": quantized_tensors,
    "sparse": sparse_tensors,
    "subclass": lambda: {"s": torch.ones(2, 2).as_subclass(Named), "b": nn.Buffer(torch.ones(1))},
}
ZIP_TREES = {
    # PyTorch writes these into a legacy file, and can't read them there.
    "nested": lambda: {"n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
    "newer dtypes": lambda: every_dtype(NEWER_DTYPES),
    "a storage without a type": lambda: [torch.arange(3).untyped_storage()],
    "jagged": lambda: {
        "j": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    },
    "meta": lambda: {"m": torch.empty(2, 3, device="meta"), "real": torch.ones(2)},
}


def write_torch(path: Path, *, make: Callable[[], Any], zipped: bool, protocol: int = 2) -> Any:
    value = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the vanished class has no source file
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    sys.modules.pop("vanished_module", None)
    return value


def write_big_endian_zip(path: Path) -> Any:
    """Write what torch writes on a big-endian machine."""
    value = write_torch(path, make=lambda: every_dtype(DTYPES), zipped=True)

    def swap(name: str, data: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        if "/data/" in name:
            # Complex numbers are two floats, each swapped by itself.
            dtype = DTYPES[int(name.rpartition("/")[2])]
            step = dtype.itemsize // (2 if dtype.is_complex else 1)
            return b"".join(data[i : i + step][::-1] for i in range(0, len(data), step))
        return data

    rewrite_zip(path, swap)
    return value


NEWER_RECORDS = (".format_version", ".storage_alignment", "byteorder", ".data/serialization_id")


def write_zip_of_1_6(path: Path) -> Any:
    """Write what PyTorch 1.6 wrote: no byte order, no alignment, no other record of later."""
    value = write_torch(path, make=checkpoint, zipped=True)
    rewrite_zip(path, lambda name, data: None if name.endswith(NEWER_RECORDS) else data)
    return value


def write_zip_without_checksums(path: Path) -> Any:
    was = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return write_torch(path, make=checkpoint, zipped=True)
    finally:
        torch.serialization.set_crc32_options(was)


def write_python_2(path: Path) -> Any:
    """Write what PyTorch wrote under Python 2: texts are byte strings, dicts lists of pairs."""
    data = torch.arange(4, dtype=torch.float32)
    pid = b"(U\x07storagectorch\nFloatStorage\nU\x019U\x03cpuK\x04NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + pid + b"K\x00K\x02K\x02\x86K\x02K\x01\x86tR"
    pair = b"](U\x09fc.weight" + tensor + b"e"
    root = b"\x80\x02ccollections\nOrderedDict\n(](" + pair + b"etR."
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True})]
    parts += [root, pickle.dumps(["9"], 2), (4).to_bytes(8, "little"), data.numpy().tobytes()]
    path.write_bytes(b"".join(parts))
    return OrderedDict({"fc.weight": data.view(2, 2)})


def write_big_endian_legacy(path: Path) -> Any:
    """Write what torch writes on a big-endian machine: little endian all the same."""
    data = torch.arange(4, dtype=torch.int32)
    tree = {"w": old_tensor(storage("IntStorage", "7", 4), 0, (2, 2), (2, 1))}
    legacy_file(path, tree, {"7": (4, data.numpy().tobytes())}, machine="big")
    return {"w": data.view(2, 2)}


def write_old_views(path: Path) -> Any:
    """Write a stream of PyTorch 0.1: storages that are parts of others, three forms of tensors."""
    data = torch.arange(10, dtype=torch.float32)
    part = storage("FloatStorage", "5", 10, view=("6", 2, 4))
    whole = storage("FloatStorage", "5", 10)
    hooks: OrderedDict[str, Any] = OrderedDict()
    tree = {
        "part": old_tensor(part, 1, (3,), (1,)),
        "whole": old_tensor(whole, 0, (2, 5), (5, 1)),
        "parameter": old_tensor(whole, 0, (2,), (1,), parameter_state=(False, False, hooks)),
        "older": old_tensor(whole, 4, (2,), (1,), whole_state=(None, hooks, True, False)),
        "oldest": old_tensor(whole, 3, (2,), (1,), is_state=True),
    }
    tree["again"] = tree["older"]
    legacy_file(path, tree, {"5": (4, data.numpy().tobytes())})
    older = nn.Parameter(data[4:6])
    return {
        "part": data[3:6],
        "whole": data.view(2, 5),
        "parameter": nn.Parameter(data[:2], requires_grad=False),
        "older": older,
        "oldest": data[3:5],
        "again": older,
    }


def write_safetensors(path: Path, *, make: Callable[[], dict[str, torch.Tensor]]) -> Any:
    tensors = make()
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def write_pickle(path: Path, *, protocol: int) -> Any:
    value = {"epoch": 3, "names": ["a", "b"], "nested": {"lr": (0.5, None, b"x")}, "set": {1, 2}}
    path.write_bytes(pickle.dumps(value, protocol))
    return value


SAMPLES = [
    *(
        Sample(f"{container} {name}", container, partial(write_torch, make=make, zipped=zipped))
        for container, zipped in (("torch-zip", True), ("torch-legacy", False))
        for name, make in TREES.items()
    ),
    *(
        Sample(f"torch-zip {name}", "torch-zip", partial(write_torch, make=make, zipped=True))
        for name, make in ZIP_TREES.items()
    ),
    *(
        Sample(
            f"{container} protocol {protocol}",
            container,
            partial(write_torch, make=checkpoint, zipped=zipped, protocol=protocol),
        )
        for container, zipped in (("torch-zip", True), ("torch-legacy", False))
        for protocol in (1, 3, 4, 5)
    ),
    Sample("torch-zip big endian", "torch-zip", write_big_endian_zip),
    Sample("torch-legacy big endian", "torch-legacy", write_big_endian_legacy),
    Sample("torch-legacy old views", "torch-legacy", write_old_views),
    Sample("torch-legacy Python 2", "torch-legacy", write_python_2),
    Sample("torch-zip of PyTorch 1.6", "torch-zip", write_zip_of_1_6),
    Sample("torch-zip without checksums", "torch-zip", write_zip_without_checksums),
    Sample(
        "safetensors state dict",
        "safetensors",
        partial(write_safetensors, make=lambda: dict(model().state_dict())),
    ),
    Sample(
        "safetensors dtypes",
        "safetensors",
        partial(
            write_safetensors,
            make=lambda: every_dtype(
                [d for d in [*DTYPES, *NEWER_DTYPES] if d is not torch.complex128]
            ),
        ),
    ),
    Sample(
        "safetensors shapes",
        "safetensors",
        partial(
            write_safetensors,
            make=lambda: {"scalar": torch.tensor(7), "empty": torch.empty(0, 3), "": torch.ones(1)},
        ),
    ),
    Sample("safetensors nothing", "safetensors", partial(write_safetensors, make=dict)),
    *(
        Sample(f"pickle protocol {protocol}", "pickle", partial(write_pickle, protocol=protocol))
        for protocol in range(6)
    ),
]
