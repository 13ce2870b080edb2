"""Files of other ecosystems, and what is no model: named, and never run.

What every one of their readers promises is checked here over `samples_foreign.FILES`; what each
says about its files has a test module of its own.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from effort import at_most
from formats.building_foreign import Lua, field, gguf, hdf5, onnx_model, onnx_node, varint
from formats.samples_foreign import FILES
from torchkeep.contents import Contents, TensorEntry
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    FileProblem,
    LimitReached,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.files import MemoryFile
from torchkeep.formats import describe, examine, examine_open
from torchkeep.formats.described_only import check_shape
from torchkeep.identify import inspect
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

ASK = "Ask whoever gave it to you for a PyTorch or safetensors file."
NO_MODELS = ("unknown", "text", "git-lfs-pointer")
every_file = pytest.mark.parametrize("name", FILES)


def look(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Contents:
    return examine_open(MemoryFile(data, Path("model.pth")), limits)


# --- What every reader promises ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, (container, _) in FILES.items() if container not in NO_MODELS]
)
def test_an_honest_model_of_another_ecosystem_is_not_ambiguous(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[name][1])
    assert inspect(path).safety.verdict in ("data-only", "needs-trust")


@every_file
def test_a_file_is_named_and_no_model_can_be_loaded_from_it(name: str, tmp_path: Path) -> None:
    container, data = FILES[name]
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    contents = examine(path)
    assert (contents.container, contents.path, contents.nbytes) == (container, path, len(data))
    assert contents.kind
    assert not contents.kind.endswith(".")
    expected = NotAModelFile if container in NO_MODELS else None
    assert isinstance(contents.problem, expected or UnsupportedContent) or name == "JSON"
    with pytest.raises(type(contents.problem)) as caught:  # type: ignore[arg-type]
        describe(path)
    assert str(caught.value).startswith(f"{path}: ")
    if expected is None:
        assert str(caught.value).endswith(f", which torchkeep describes and does not load. {ASK}")


@every_file
def test_a_file_that_is_cut_anywhere_is_one_line(name: str) -> None:
    whole = FILES[name][1]
    for length in lengths(len(whole)):
        check_report(look(whole[:length]))


@every_file
def test_a_file_with_flipped_bytes_is_one_line(name: str) -> None:
    whole = FILES[name][1]
    rng = random.Random(0)
    for place in lengths(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= rng.randint(1, 255)
        check_report(look(bytes(damaged)))
        width = rng.choice([1, 2, 4, 8])
        damaged[place : place + width] = rng.choice([b"\xff", b"\0", b"\x7f"]) * width
        check_report(look(bytes(damaged)))


def lengths(nbytes: int) -> list[int]:
    """Return every length up to a file's size; of a long file, many."""
    return list(range(nbytes)) if nbytes < 1500 else random.Random(1).sample(range(nbytes), 1000)


def check_report(contents: Contents) -> None:
    message = str(contents.problem)
    assert isinstance(contents.problem, FileProblem)
    assert message.isprintable()
    assert len(message) < 500
    assert len(contents.kind) < 500
    for entry in entries(contents.root):
        assert entry.nbytes_needed <= entry.storage.nbytes
        if entry.storage.offset is not None:
            assert entry.storage.offset + entry.storage.nbytes <= contents.nbytes


def entries(root: Any) -> Iterator[TensorEntry]:
    for value in (root or {}).values():
        if isinstance(value, TensorEntry):
            yield value


# --- Cost ----------------------------------------------------------------------------------------

KIB10 = 10_000
DEEP_NODE = b""
for _ in range(1_500):
    DEEP_NODE = field(1, field(5, field(6, DEEP_NODE)))

HOSTILE: dict[str, bytes] = {
    "graphs in graphs": onnx_model(graph=DEEP_NODE)[:KIB10],
    "empty nodes": onnx_model(nodes=[b""] * 4_900),
    "nodes": onnx_model(nodes=[onnx_node("A", domain="d")] * 500),
    "dims": onnx_model(initializers=[field(1, b"\x01" * 9_000)]),
    "a message of 2^63 bytes": field(1, 8) + varint(7 << 3 | 2) + varint((1 << 64) - 1),
    "2^63 tensors": b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 1 << 63),
    "a text of 2^63 bytes": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + bytes(100),
    "an array of 2^63 texts": gguf([("a", 9, (8, []))])[:-8] + b"\xff" * 8 + bytes(9_000),
    "facts": gguf([(f"{number}", 7, 1) for number in range(600)]),
    "attributes": hdf5({f"a{n}": "x" for n in range(120)}, [], version=0)[:KIB10],
    "one heap": hdf5(dict.fromkeys(map(str, range(90)), "x"), [], in_heap=("0",)),
    "tables in tables": Lua().add(1).data[:0]
    + b"".join(struct.pack("<iiiid", 3, n, 1, 1, 1.0) for n in range(1, 400)),
    "functions": struct.pack("<iii", 3, 1, 400)
    + b"".join(struct.pack("<idiii", 1, 1.0, 6, 0, 0) for _ in range(400)),
    "a table of 2^31 items": struct.pack("<iiiid", 3, 1, (1 << 31) - 1, 1, 1.0) + bytes(9_000),
    "a storage of 2^63 elements": struct.pack("<ii", 4, 1)
    + b"\x03\0\0\0V 1"
    + b"\x12\0\0\0torch.FloatStorage"
    + struct.pack("<q", (1 << 63) - 1)
    + bytes(100),
    "tables that overlap": b"\x08\0\0\0ET12" + struct.pack("<HHHH", 8, 12, 0, 4) + bytes(9_000),
    "parameters": (struct.pack("<IQIi", 0, 0, 0, 4) + b"\x08\x05\x10\x00") * 450,
    "brackets": b"\x93NUMPY\x02\x00" + struct.pack("<I", 9_000) + b"[" * 9_000,
    "JSON brackets": b"[" * KIB10,
    "JSON objects": b'{"class_name":"A","config":' * 300 + b"1" + b"}" * 300,
    "YAML": b"#\n" + b"\n" * 9_000 + b"x",
    "titles": b"<html>" + b"<title" * 1_500,
    "templates": gguf([("tokenizer.chat_template", 8, "| " * 4_900)]),
    "blanks in digits": b"4\n1\n3\nV 1\n18\ntorch.FloatStorage\n9000\n" + b" " * 9_000,
    "opcodes in text": b"N0" * 5_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_of_10_kb_costs_little(name: str) -> None:
    data = HOSTILE[name]
    look(data)  # what is imported on first use is not the file's doing
    with at_most(50):
        contents = look(data)
    check_report(contents)
    tracemalloc.start()
    try:
        look(data)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["ONNX", "GGUF", "HDF5", "Lua", "Paddle parameters", "ExecuTorch"])
def test_the_limit_on_headers_holds(name: str) -> None:
    container, data = FILES[name]
    contents = look(data, Limits(header_nbytes=20))
    assert contents.container == container
    assert isinstance(contents.problem, LimitReached)
    assert "header_nbytes=20" in str(contents.problem)


def test_tensors_cost_nothing_whatever_their_size(tmp_path: Path) -> None:
    numel = 1 << 28  # protobuf has no messages above 2 GB
    path = tmp_path / "model"
    tensor = field(1, numel) + field(2, 1) + field(8, "w")
    tensor += varint(9 << 3 | 2) + varint(4 * numel)
    graph = varint(5 << 3 | 2) + varint(len(tensor) + 4 * numel) + tensor
    head = field(1, 8) + field(8, field(2, 17)) + varint(7 << 3 | 2)
    path.write_bytes(head + varint(len(graph) + 4 * numel) + graph)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 4 * numel)
    with at_most(5):
        contents = examine(path)
        assert contents.root["w"].shape == (numel,)


# --- Small things --------------------------------------------------------------------------------


def test_random_bytes_are_always_one_line() -> None:
    rng = random.Random(0)
    starts = [b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"(", b"c", b"}", b"\x08\x08"]
    starts += [b"GGUF\x03\0\0\0", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY\x01\0", b"\0\0\0\0ET12"]
    starts += [b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1\x03\0\0\0a.b", b"4\n1\n3\nV 1\n3\na.b\n"]
    for start in starts:
        for _ in range(40):
            contents = look(start + rng.randbytes(rng.choice([1, 10, 600])))
            assert str(contents.problem).isprintable()
            assert len(str(contents.problem)) < 400


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissing) as caught:
        describe(tmp_path / "none.pth")
    assert str(caught.value) == f"{tmp_path}/none.pth: there is no such file. Check the path."


@pytest.mark.parametrize("shape", [(1,) * 65, (1 << 32, 1 << 32), (-1,), (0, 1 << 63)])
def test_a_shape_that_no_tensor_can_have_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DamagedFile, match="tensor 'w'"):
        check_shape("w", shape)
