"""Attacks that bring their code in the open: programs, libraries, and names in settings."""

from __future__ import annotations

import json

from attacks.attack import Collection
from attacks.streams import (
    STOP,
    call,
    command,
    name,
    number,
    payload,
    source,
    state_dict,
    storage,
    tensor,
    text,
    torch_zip,
    u8,
    zip_of,
)

ATTACKS = Collection([])
attack = ATTACKS

ELF = b"\x7fELF\x02\x01\x01" + bytes(57)


# --- TorchScript ---------------------------------------------------------------------------------


def _script_source(marker: str) -> bytes:
    """Return a program that writes a file: TorchScript can do that."""
    return (
        "class Net(Module):\n"
        "  __parameters__ = []\n"
        "  __buffers__ = []\n"
        "  def forward(self: __torch__.Net) -> Tensor:\n"
        f"    _0 = torch.from_file({marker!r}, True, 4)\n"
        "    return _0\n"
    ).encode()


def _script(marker: str) -> list[tuple[str, bytes]]:
    root = b"\x80\x02" + name("__torch__", "Net") + b")\x81}" + text("training") + b"\x89sb."
    return [
        ("model/data.pkl", root),
        ("model/code/__torch__.py", _script_source(marker)),
        ("model/constants.pkl", b"\x80\x02)."),
        ("model/version", b"3\n"),
    ]


@attack("TorchScript under weights_only", "needs-trust", suffix=".pt")
def a_program(marker: str) -> bytes:
    return zip_of(_script(marker))


@attack("TorchScript under weights_only", "needs-trust", suffix=".pth")
def a_program_with_an_innocent_object(marker: str) -> bytes:
    records = dict(_script(marker))
    records["model/data.pkl"] = state_dict()
    records["model/data/0"] = bytes(16)
    return zip_of(list(records.items()))


@attack("TorchScript under weights_only", "needs-trust", suffix=".bin")
def an_object_with_constants_only(marker: str) -> bytes:
    return torch_zip(state_dict(), [("archive/constants.pkl", b"\x80\x02).")])


@attack("TorchScript under weights_only", "dangerous", suffix=".pt")
def a_program_whose_constants_run(marker: str) -> bytes:
    records = dict(_script(marker)) | {"model/constants.pkl": payload(marker)}
    return zip_of(list(records.items()))


@attack("TorchScript under weights_only", "dangerous", suffix=".pt")
def a_program_whose_object_runs(marker: str) -> bytes:
    records = dict(_script(marker)) | {"model/data.pkl": payload(marker)}
    return zip_of(list(records.items()))


@attack("TorchScript under weights_only", "needs-trust", suffix=".ptl")
def a_program_for_the_phone(marker: str) -> bytes:
    bytecode = b"\x80\x02K\x04" + text("__torch__.Net.forward") + b")\x86\x86."
    return zip_of([*_script(marker), ("model/bytecode.pkl", bytecode)])


@attack("TorchScript under weights_only", "ambiguous", suffix=".pth")
def a_program_beside_an_object(marker: str) -> bytes:
    # One root is the object's, the other the program's.
    return zip_of([*_script(marker), ("other/data.pkl", state_dict())])


for record in ("archive/code/__torch__.py.debug_pkl", "archive/code/a.debug_pkl"):
    ATTACKS.add(
        "debug_pkl",
        "ambiguous",
        f"a pickle in {record}",
        lambda marker, record=record: torch_zip(state_dict(), [(record, payload(marker))]),
        suffix=".pth",
    )


@attack("debug_pkl", "dangerous", suffix=".pt")
def the_debug_pickle_of_a_program(marker: str) -> bytes:
    return zip_of([*_script(marker), ("model/code/__torch__.py.debug_pkl", payload(marker))])


# --- torch.package -------------------------------------------------------------------------------


def _package(marker: str, pickled: bytes) -> list[tuple[str, bytes]]:
    return [
        ("net/.data/version", b"6\n"),
        ("net/.data/extern_modules", b"os\n"),
        ("net/.data/python_version", b"3.11.0"),
        ("net/model/model.pkl", pickled),
        ("net/project.py", source(marker).encode()),
    ]


@attack("torch.package code", "needs-trust", suffix=".pt")
def a_package(marker: str) -> bytes:
    return zip_of(_package(marker, b"\x80\x02" + name("project", "Net") + b")\x81."))


@attack("torch.package code", "needs-trust", suffix=".pt")
def a_package_of_plain_values(marker: str) -> bytes:
    return zip_of(_package(marker, b"\x80\x02}."))


@attack("torch.package code", "dangerous", suffix=".pt")
def a_package_whose_object_runs(marker: str) -> bytes:
    return zip_of(_package(marker, payload(marker)))


@attack("torch.package code", "ambiguous", suffix=".pth")
def source_text_beside_an_object(marker: str) -> bytes:
    return torch_zip(state_dict(), [("archive/setup.py", source(marker).encode())])


# --- Native code ---------------------------------------------------------------------------------


def _exported(extra: list[tuple[str, bytes]]) -> bytes:
    program = json.dumps({"graph_module": {"graph": {"nodes": []}}, "schema_version": {}})
    return zip_of(
        [
            ("model/archive_format", b"pt2"),
            ("model/archive_version", b"0"),
            ("model/byteorder", b"little"),
            ("model/models/model.json", program.encode()),
            *extra,
        ]
    )


@attack("native code", "needs-trust", suffix=".pt2")
def a_compiled_library(marker: str) -> bytes:
    return _exported([("model/data/aotinductor/model/model.so", ELF)])


@attack("native code", "needs-trust", suffix=".pt2")
def a_compiled_library_under_another_name(marker: str) -> bytes:
    return _exported([("model/data/aotinductor/model/weights.bin", ELF)])


@attack("native code", "needs-trust", suffix=".pt2")
def source_text_of_a_library(marker: str) -> bytes:
    return _exported([("model/data/aotinductor/model/wrapper.cpp", b"int main() { return 0; }")])


@attack("native code", "dangerous", suffix=".pt2")
def a_pickle_among_the_constants(marker: str) -> bytes:
    return _exported([("model/data/constants/custom_obj_0", payload(marker))])


@attack("native code", "dangerous", suffix=".pt2")
def sample_inputs_that_run(marker: str) -> bytes:
    return _exported([("model/data/sample_inputs/model.pt", torch_zip(payload(marker)))])


@attack("native code", "dangerous", suffix=".pth")
def a_library_beside_an_object(marker: str) -> bytes:
    return torch_zip(state_dict(), [("archive/data/lib.so", ELF)])


@attack("native code", "ambiguous", suffix=".bin")
def a_library_called_bin(marker: str) -> bytes:
    return ELF


@attack("native code", "ambiguous", suffix=".pt")
def a_windows_program(marker: str) -> bytes:
    return b"MZ\x90\x00" + bytes(60)


# --- Settings ------------------------------------------------------------------------------------


def _settings(opcodes: bytes) -> bytes:
    """Return a checkpoint with hyper-parameters."""
    root = b"}" + text("state_dict") + b"}" + text("w") + tensor() + b"ss"
    return torch_zip(b"\x80\x02" + root + text("hyper_parameters") + opcodes + b"s" + STOP)


def _target(callee: str, argument: str) -> bytes:
    return b"}(" + text("_target_") + text(callee) + text("_args_") + b"]" + text(argument) + b"au"


for callee in ("os.system", "builtins.exec", "subprocess.run", "importlib.import_module"):
    ATTACKS.add(
        "_target_",
        "dangerous",
        f"a target called {callee}",
        lambda marker, callee=callee: _settings(_target(callee, command(marker))),
        suffix=".ckpt",
    )


@attack("_target_", "needs-trust", suffix=".ckpt")
def a_target_that_nobody_knows(marker: str) -> bytes:
    return _settings(_target("project.build", "x"))


@attack("_target_", "dangerous", suffix=".ckpt")
def a_target_deep_in_the_settings(marker: str) -> bytes:
    inner = _target("os.system", command(marker))
    return _settings(b"}" + text("model") + b"]}" + text("encoder") + inner + b"sas")


@attack("_target_", "dangerous", suffix=".ckpt")
def a_target_in_an_object_of_settings(marker: str) -> bytes:
    made = name("omegaconf.dictconfig", "DictConfig") + b")\x81}" + text("_content")
    return _settings(made + _target("os.system", command(marker)) + b"sb")


@attack("_target_", "dangerous", suffix=".ckpt")
def a_target_that_is_a_value_of_an_object(marker: str) -> bytes:
    node = name("omegaconf.nodes", "AnyNode") + b")\x81}" + text("_val") + text("os.system") + b"sb"
    return _settings(b"}" + text("_target_") + node + b"s")


@attack("_target_", "dangerous", suffix=".ckpt")
def a_target_in_a_text_of_settings(marker: str) -> bytes:
    return _settings(text(f"model:\n  _target_: os.system\n  command: {command(marker)}\n"))


@attack("_target_", "dangerous", suffix=".safetensors")
def a_target_in_the_metadata_of_safetensors(marker: str) -> bytes:
    config = json.dumps({"_target_": "os.system", "command": command(marker)})
    row = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": {"config": config}, "w": row}).encode()
    return u8(len(header)) + header + bytes(4)


@attack("_target_", "dangerous", suffix=".pkl")
def a_target_in_a_pickle(marker: str) -> bytes:
    return b"\x80\x04" + _target("posix.system", command(marker)) + STOP


@attack("_target_", "dangerous", suffix=".nemo")
def a_target_in_the_settings_beside_the_weights(marker: str) -> bytes:
    settings = f"encoder:\n  _target_: os.system\n  command: {command(marker)}\n".encode()
    from attacks.streams import tar_of

    return tar_of(
        [("model_config.yaml", settings), ("model_weights.ckpt", torch_zip(state_dict()))]
    )


@attack("native code", "ambiguous", suffix=".pth")
def a_tensor_from_shared_memory(marker: str) -> bytes:
    where = storage("0", 4)
    call_ = call(name("torch._utils", "_rebuild_tensor_v2"), where, text(marker), number(0))
    return torch_zip(b"\x80\x02" + call_ + STOP)
