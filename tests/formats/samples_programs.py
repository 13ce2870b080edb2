"""Samples of archives that hold programs, and how to compare them with what PyTorch loads.

TorchScript, exported programs and packages are written by the installed PyTorch. What it no longer
writes (the archives of PyTorch 1.0 to 1.2, those of the C++ API, older exports) is put together
record by record, to the layouts that it still reads.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from formats.building import Call, StorageId, object_pickle
from formats.samples import Sample
from torchkeep.contents import Contents, Object, TensorEntry
from torchkeep.identify import identify

Records = list[tuple[str, bytes]]

DEPRECATIONS = (
    "`torch.jit.*` is deprecated",
    "Lite Interpreter is deprecated",
    "torch.tensor results are registered as constants",
    ".*quantize",
    "Sparse CSR tensor support is in beta",
    ".*TypedStorage is deprecated",
    "No complete tensor found in the group",
    "This version of file is deprecated",
)
"""What PyTorch says of the formats that are written here."""


@contextmanager
def deprecated() -> Iterator[None]:
    """Use what PyTorch warns of."""
    with warnings.catch_warnings():
        for message in DEPRECATIONS:
            warnings.filterwarnings("ignore", message=message)
        yield


def write_zip(path: Path, records: Records) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)


def records_of(data: bytes) -> Records:
    """Return the records of an archive, in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


# --- Comparing -----------------------------------------------------------------------------------


def state_dict_of(contents: Contents, name: str = "") -> dict[str, TensorEntry]:
    """Return the entries of the state dict with this name."""
    found = [item for item in identify(contents).state_dicts if item.name == name]
    assert len(found) == 1, [item.name for item in identify(contents).state_dicts]
    return found[0].entries


def check_tensors(mine: dict[str, Any], theirs: dict[str, torch.Tensor]) -> None:
    """Compare names, order, dtypes, shapes, strides, bytes and sharing of two tables of tensors."""
    assert list(mine) == list(theirs)
    storages: dict[int, int] = {}
    for name, tensor in theirs.items():
        entry = mine[name]
        assert isinstance(entry, TensorEntry), name
        check_tensor(name, entry, tensor)
        if tensor.numel() and not tensor.is_meta:
            start = tensor.untyped_storage().data_ptr()
            assert storages.setdefault(id(entry.storage), start) == start, name
    assert len(set(storages.values())) == len(storages)


def check_tensor(name: str, entry: TensorEntry, tensor: torch.Tensor) -> None:
    assert f"torch.{entry.dtype}" == str(tensor.dtype), name
    assert (entry.shape, entry.stride) == (tuple(tensor.shape), tensor.stride()), name
    stored = entry.storage
    if not tensor.numel() or stored.device == "meta":
        return
    assert stored.path is not None, name
    assert stored.offset is not None, name
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        raw = bytearray(file.read(stored.nbytes))
    live = torch.frombuffer(raw, dtype=torch.uint8).untyped_storage()
    got = torch.empty(0, dtype=tensor.dtype).set_(
        live, entry.storage_offset, entry.shape, entry.stride
    )
    assert bits(got) == bits(tensor), name


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


# --- TorchScript ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: int
    second: torch.Tensor


class Colour(Enum):
    RED = 1
    BLUE = 2


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 4)
        self.register_buffer("scale", torch.full((2,), 0.5))
        self.register_buffer("strided", torch.arange(8.0)[::2], persistent=False)
        self.note = "héllo"
        self.sizes = [1, 2, 3]
        self.tensors = [torch.ones(2), torch.zeros(3)]
        self.plain = torch.arange(4.0)
        self.table = {"a": 1.5}
        self.pair = (1, "x")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x) * self.sizes[0]


class Net(nn.Module):
    """Two names for one child, tied weights, frozen parameters, a list and a dict of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a = Inner()
        self.b = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.c = self.a
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.b[0].weight  # type: ignore[assignment]
        self.listed = nn.ModuleList([nn.Linear(4, 4)])
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(2))])
        for parameter in self.b[1].parameters():
            parameter.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for item in self.listed:
            x = item(self.c(self.a(x)[:, :3])) + torch.zeros(1)
        return self.tied(self.b(x))


class WithConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x) + torch.tensor([1.0, 2.0, 3.0, 4.0])


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return (self.weight * 2, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = WithState()
        self.lin = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(self.inner(x))


class EveryDtype(nn.Module):
    def __init__(self, dtypes: list[torch.dtype]) -> None:
        super().__init__()
        numbers = torch.tensor([[0, 1, 1], [0, 1, 1]])
        for index, dtype in enumerate(dtypes):
            self.register_buffer(f"b{index}", numbers.to(dtype).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script_module(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    with deprecated():
        return torch.jit.script(make())


def trace_module(make: Callable[[], nn.Module], example: torch.Tensor) -> Any:
    torch.manual_seed(0)
    with deprecated():
        return torch.jit.trace(make().eval(), example)


def save_script(path: Path, module: Any, **extra: Any) -> None:
    with deprecated():
        torch.jit.save(module, path, **extra)


def load_script(path: Path) -> Any:
    with deprecated():
        return torch.jit.load(path)


def write_script(path: Path) -> None:
    save_script(path, script_module(Net), _extra_files={"config.txt": "stride=32"})


def write_traced(path: Path) -> None:
    save_script(path, trace_module(WithConstants, torch.ones(2, 3)))


def write_frozen(path: Path) -> None:
    with deprecated():
        module = torch.jit.freeze(script_module(lambda: WithConstants().eval()))
    save_script(path, module)


def write_lite(path: Path) -> None:
    with deprecated():
        trace_module(WithConstants, torch.ones(2, 3))._save_for_lite_interpreter(str(path))


# --- The C++ API since PyTorch 1.3 ---------------------------------------------------------------


class CppModule:
    """Pickled as C++ pickles a module: a class of TorchScript's, and a table of its attributes."""


@contextmanager
def torchscript_classes(names: list[str]) -> Iterator[dict[str, type]]:
    """Make classes with these dotted names, which Python can pickle while the block runs."""
    made = {}
    modules = {}
    before = dict(sys.modules)
    for dotted in names:
        module, _, name = dotted.rpartition(".")
        modules[module] = sys.modules.setdefault(module, types.ModuleType(module))
        made[dotted] = type(name, (), {"__module__": module, "__qualname__": name})
        setattr(modules[module], name, made[dotted])
    try:
        yield made
    finally:
        for module in modules.keys() - before.keys():
            del sys.modules[module]


def cpp_object(cls: type, attributes: dict[str, Any]) -> Any:
    value = cls()
    value.__dict__.update(attributes)
    return value


def cpp_tensor(key: str, shape: tuple[int, ...], *, requires_grad: bool = False) -> Call:
    """Return a float tensor over all of the storage `key`."""
    numel = int(torch.Size(shape).numel())
    where = StorageId(("storage", torch.FloatStorage, key, "cpu", numel))
    stride = torch.empty(shape).stride()
    args = (where, 0, shape, stride, requires_grad, _hooks())
    return Call(torch._utils._rebuild_tensor_v2, args)


def _hooks() -> Any:
    from collections import OrderedDict

    return OrderedDict()


CPP_CODE = {
    "__torch__": b"""class Module(Module):
  __parameters__ = ["p", ]
  __buffers__ = ["s", ]
  p : Tensor
  s : Tensor
  lin : __torch__.___torch_mangle_0.Module
""",
    "__torch__/___torch_mangle_0": b"""class Module(Module):
  __parameters__ = ["weight", ]
  __buffers__ = []
  weight : Tensor
""",
}


def cpp_records() -> Records:
    """Return what `torch::save` writes for a module with a child, in PyTorch 1.3 and newer."""
    names = ["__torch__.Module", "__torch__.___torch_mangle_0.Module"]
    with torchscript_classes(names) as classes:
        child = cpp_object(
            classes[names[1]], {"weight": cpp_tensor("2", (2, 2), requires_grad=True)}
        )
        root = cpp_object(
            classes[names[0]],
            {
                "p": cpp_tensor("0", (2,), requires_grad=True),
                "s": cpp_tensor("1", (3,)),
                "lin": child,
            },
        )
        data = object_pickle(root)
    code = [(f"model/code/{name}.py", text) for name, text in CPP_CODE.items()]
    numbers = [torch.arange(2.0), torch.arange(3.0), torch.arange(4.0)]
    return [
        *((f"model/data/{i}", bits(tensor)) for i, tensor in enumerate(numbers)),
        ("model/data.pkl", data),
        *code,
        ("model/constants.pkl", b"\x80\x02)."),
        ("model/version", b"3\n"),
    ]


# --- PyTorch 1.0 to 1.2 --------------------------------------------------------------------------


def old_tensor_def(
    key: str, dims: tuple[int, ...], kind: str = "FLOAT", **changes: Any
) -> dict[str, Any]:
    """Return a tensor of the table, as protobuf writes it in JSON."""
    strides = torch.empty(dims).stride()
    return {
        "dims": [str(size) for size in dims],
        "offset": "0",
        "strides": [str(step) for step in strides],
        "requiresGrad": False,
        "dataType": kind,
        "data": {"key": key},
        "device": "cpu",
        "isQuantized": False,
        **changes,
    }


def old_model() -> dict[str, Any]:
    """Return the `model.json` of a module with a child that shares a storage with it."""
    child = {
        "name": "0",
        "optimize": True,
        "parameters": [{"isBuffer": False, "tensorId": "2", "name": "weight"}],
    }
    return {
        "protoVersion": "3",
        "producerName": "pytorch",
        "producerVersion": "1.0",
        "mainModule": {
            "name": "model",
            "optimize": True,
            "parameters": [
                {"isBuffer": False, "tensorId": "0", "name": "w"},
                {"isBuffer": True, "tensorId": "1", "name": "running"},
            ],
            "attributes": [{"type": "int", "name": "count", "id": "0"}],
            "submodules": [child],
        },
        "tensors": [
            old_tensor_def("tensors/0", (2, 3), requiresGrad=True),
            old_tensor_def("tensors/1", (4,), "INT64"),
            old_tensor_def("tensors/0", (3,), offset="3", requiresGrad=True),
        ],
    }


OLD_CODE = b"""op_version_set = 0
def forward(self,
    x: Tensor) -> Tensor:
  return torch.add(x, self.w, alpha=1)
"""


def old_records(model: dict[str, Any] | None = None, attributes: Any = (7,)) -> Records:
    """Return an archive of the C++ API of PyTorch 1.0 to 1.2, in the order of its writer."""
    pickled = attributes if isinstance(attributes, bytes) else pickle.dumps(attributes, 2)
    return [
        ("model/version", b"1\n"),
        ("model/attributes.pkl", pickled),
        ("model/tensors/0", bits(torch.arange(6.0))),
        ("model/tensors/1", bits(torch.arange(4))),
        ("model/model.json", json.dumps(old_model() if model is None else model).encode()),
    ]


def old_program_records() -> Records:
    """Return an archive of `torch.jit.save` of PyTorch 1.0 to 1.2."""
    model = old_model()
    model["mainModule"]["torchscriptArena"] = {"key": "code/model.py"}
    return [("model/code/model.py", OLD_CODE), *old_records(model)]


# --- Exported programs ---------------------------------------------------------------------------


class Exported(nn.Module):
    """Tied weights, a buffer that is a view, one that is not persistent, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 4)
        self.bn = nn.BatchNorm1d(4)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.lin.weight  # type: ignore[assignment]
        self.register_buffer("scale", torch.full((4,), 0.5))
        self.register_buffer("view", self.scale[1:3])
        self.register_buffer("gone", torch.arange(8.0)[::2], persistent=False)
        self.constant = torch.arange(12.0).view(3, 4).t()

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.bn(self.lin(x)) + self.tied(x) + self.scale + self.gone
        return {"y": y + self.constant.sum() + self.view.sum(), "n": y.shape[0] * 2}


@cache
def exported() -> Any:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=2, max=64)
    with deprecated():
        return torch.export.export(
            Exported().eval(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},)
        )


@cache
def export_bytes() -> bytes:
    """Return what `torch.export.save` writes."""
    buffer = io.BytesIO()
    with deprecated():
        torch.export.save(exported(), buffer, extra_files={"notes.txt": "hello"})
    return buffer.getvalue()


@cache
def serialized_parts() -> dict[str, bytes]:
    """Return the four parts of an exported program, as all older layouts hold them."""
    from torch._export.serde.serialize import serialize  # as torch.export.save calls it

    with deprecated():
        artifact = serialize(exported())
    names = ("exported_program", "state_dict", "constants", "example_inputs")
    return {name: getattr(artifact, name) for name in names}


def old_export_records(suffix: str = ".pt") -> Records:
    """Return what `torch.export.save` of PyTorch 2.1 to 2.5 writes.

    Args:
        suffix: how the pickles are called; `.json` for a while.
    """
    parts = serialized_parts()
    return [
        ("serialized_exported_program.json", parts["exported_program"]),
        (f"serialized_state_dict{suffix}", parts["state_dict"]),
        (f"serialized_constants{suffix}", parts["constants"]),
        ("serialized_example_inputs.pt", parts["example_inputs"]),
        ("version", b"8.20"),
        ("extra_files/notes.txt", b"hello"),
    ]


def middle_export_records() -> Records:
    """Return what PyTorch 2.6 and 2.7 write: whole pickles in the new folders."""
    parts = serialized_parts()
    return [
        ("archive/data/weights/model.pt", parts["state_dict"]),
        ("archive/data/constants/model.pt", parts["constants"]),
        ("archive/models/model.json", parts["exported_program"]),
        ("archive/data/sample_inputs/model.pt", parts["example_inputs"]),
        ("archive/archive_format", b"pt2"),
        ("archive/archive_version", b"0"),
        ("archive/.data/version", b"6\n"),
    ]


def write_export(path: Path) -> None:
    path.write_bytes(export_bytes())


def write_native_export(path: Path) -> dict[str, torch.Tensor]:
    """Write an AOTInductor package with its weights beside the code; return the weights."""
    from torch.export.pt2_archive._package import package_pt2
    from torch.export.pt2_archive._package_weights import TensorProperties, Weights

    base = torch.arange(12.0)
    tensors = {"w": base, "part": base[4:8].view(2, 2), "other": torch.ones(2, 3).t()}
    weights = Weights({name: (item, TensorProperties(item)) for name, item in tensors.items()})
    with TemporaryDirectory() as folder:
        code = Path(folder, "kernel.wrapper.so")
        code.write_bytes(b"\x7fELF, or so it says")
        buffer = io.BytesIO()
        with deprecated():
            package_pt2(buffer, aoti_files={"model": [str(code), weights]})
    path.write_bytes(buffer.getvalue())
    return tensors


# --- Packages ------------------------------------------------------------------------------------

PACKAGED = '''
import torch
from torch import nn

class Net(nn.Module):
    """A net of the package's own."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 4)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x):
        return self.lin(x)

def helper():
    return 1
'''


@contextmanager
def packaged_module() -> Iterator[types.ModuleType]:
    """Import a module whose source is on the disk for a while, as an exporter needs it."""
    with TemporaryDirectory() as folder:
        package = Path(folder, "sample_package")
        package.mkdir()
        (package / "__init__.py").write_text("# nothing\n")
        (package / "net.py").write_text(PACKAGED)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield importlib.import_module("sample_package.net")
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.startswith("sample_package")]:
                del sys.modules[name]


@cache
def package_bytes() -> bytes:
    """Return a package of a model, its trace, and a dict that holds TorchScript of it."""
    from torch.package import PackageExporter, package_exporter

    buffer = io.BytesIO()
    torch.manual_seed(0)
    was = package_exporter._gate_torchscript_serialization
    package_exporter._gate_torchscript_serialization = False  # PyTorch calls it a beta feature
    try:
        with packaged_module() as module, deprecated(), PackageExporter(buffer) as exporter:
            net = module.Net()
            exporter.intern("sample_package.**")
            exporter.extern("torch.**")
            exporter.save_pickle("model", "model.pkl", net)
            exporter.save_pickle("model", "traced.pkl", torch.fx.symbolic_trace(net))
            both = {"weight": net.lin.weight, "script": torch.jit.script(net), "n": 3}
            exporter.save_pickle("model", "both", both)
            exporter.save_text("texts", "readme.txt", "hello")
            exporter.save_binary("texts", "b.bin", b"\x00\x01 no pickle")
    finally:
        package_exporter._gate_torchscript_serialization = was
    return buffer.getvalue()


def write_package(path: Path) -> None:
    path.write_bytes(package_bytes())


# --- For the conformance suite -------------------------------------------------------------------


def _records(path: Path, *, make: Callable[[], Records]) -> None:
    write_zip(path, make())


SAMPLES = [
    Sample("torchscript scripted state dict", "torchscript", write_script),
    Sample("torchscript traced", "torchscript", write_traced),
    Sample("torchscript frozen", "torchscript", write_frozen),
    Sample("torchscript 1.2", "torchscript", partial(_records, make=old_program_records)),
    Sample("torchscript-lite state dict", "torchscript-lite", write_lite),
    Sample("torch-cpp state dict", "torch-cpp", partial(_records, make=old_records)),
    Sample("torch-cpp 1.3", "torch-cpp", partial(_records, make=cpp_records)),
    Sample("torch-export state dict", "torch-export", write_export),
    Sample("torch-export 2.6", "torch-export", partial(_records, make=middle_export_records)),
    Sample("torch-export 2.5", "torch-export", partial(_records, make=old_export_records)),
    Sample("torch-package state dict", "torch-package", write_package),
]


def root_module(contents: Contents) -> Object:
    assert isinstance(contents.root, Object)
    return contents.root
