"""What an HDF5 file says about itself, and what is in a Keras model that runs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import torchkeep
from formats.building_foreign import (
    Hdf5,
    data_set,
    fixed_text,
    hdf5,
    hdf5_number,
    old_header,
    superblock,
    texts_attribute,
)
from formats.samples_foreign import KERAS, LAMBDA
from torchkeep.contents import Contents, TensorEntry
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.ecosystems.keras import find_code
from torchkeep.identify import inspect
from torchkeep.pickles.limits import DEFAULT_LIMITS


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.h5")), DEFAULT_LIMITS)


@pytest.mark.parametrize("version", [0, 2, 3])
@pytest.mark.parametrize("in_heap", [(), ("model_config",)])
def test_a_keras_model_is_told(version: int, in_heap: tuple[str, ...]) -> None:
    data = hdf5(KERAS, ["model_weights", "optimizer"], version=version, in_heap=in_heap)
    contents = look(data)
    assert contents.container == "hdf5"
    assert contents.kind == (
        "Keras model in HDF5 (Keras 2.4.0, backend tensorflow): Sequential, 3 layers"
    )
    assert contents.metadata["names"] == "model_weights, optimizer"
    assert contents.metadata["keras_version"] == "2.4.0"
    assert contents.findings == ()
    assert isinstance(contents.problem, UnsupportedContent)


def test_weights_without_a_model_are_told() -> None:
    facts = {"keras_version": "2.4.0", "backend": "jax"}
    kind = look(hdf5(facts, ["layers"])).kind
    assert kind == "Keras weights in HDF5 (Keras 2.4.0, backend jax)"


def test_another_file_is_told_by_its_names() -> None:
    assert look(hdf5({}, ["x"])).kind == "HDF5 file: x"
    assert look(hdf5({}, list("abcde"))).kind == "HDF5 file: a, b, c, d, ..."
    assert look(hdf5({}, [])).kind == "HDF5 file"


@pytest.mark.parametrize("version", [1, 2])
def test_several_texts_are_counted(version: int) -> None:
    names = texts_attribute("layer_names", ["dense_1", "dense_2", "dense_3"], version=version)
    assert look(file_of([(0x0C, names)])).metadata == {"layer_names": "3 texts"}


@pytest.mark.parametrize("in_heap", [(), ("model_config",)])
def test_a_lambda_layer_needs_trust(in_heap: tuple[str, ...]) -> None:
    findings = look(hdf5({"model_config": json.dumps(LAMBDA)}, [], in_heap=in_heap)).findings
    assert [(f.rule, f.severity) for f in findings] == [("keras-lambda", "needs-trust")]


@pytest.mark.parametrize(
    "layer",
    [
        {"class_name": "Lambda"},
        {"class_name": "__lambda__", "config": {"code": "4wEA"}},
        json.loads('{"class_name": "\\u004cambda"}'),
        {"config": [{"a": [{"class_name": "Lambda"}]}]},
    ],
)
def test_code_is_found_wherever_it_stands(layer: Any) -> None:
    assert find_code({"class_name": "Model", "config": {"layers": [layer]}})


def test_layers_that_only_sound_alike_hold_no_code() -> None:
    assert not find_code({"class_name": "TFOpLambda", "config": {"name": "Lambda"}})


def dense(text: str) -> bytes:
    """Return a file whose attributes are in a structure for many of them."""
    info = struct.pack("<BBQQ", 0, 0, 96, 96)
    root = old_header([(0x15, info)])
    data = superblock(0, 96 + len(root) + len(text), 96) + root
    return data + text.encode()


def test_what_is_not_read_is_searched() -> None:
    assert look(dense("")).findings == ()
    found = look(dense('{"class_name": "Lambda"}')).findings
    assert [(f.rule, f.severity) for f in found] == [("keras-lambda", "needs-trust")]


def file_of(messages: list[tuple[int, bytes]]) -> bytes:
    root = old_header(messages)
    return superblock(0, 96 + len(root), 96) + root


NOWHERE = struct.pack("<QQ", 1 << 60, 1 << 60)
REFUSED = [
    (hdf5(KERAS, ["w"])[:-9], "the file is truncated: it should have"),
    (superblock(0, 96, 1 << 62), "bytes are needed at byte 0"),
    (superblock(0, 96, 8), "no HDF5 object header is at byte 8"),
    (superblock(0, 96, 96)[:13] + b"\3\3" + superblock(0, 96, 96)[15:], "impossible widths"),
    (file_of([(0x11, NOWHERE)]), "bytes are needed at byte 0"),
    (file_of([(0x11, struct.pack("<QQ", 96, 0))]), "no HEAP is at byte 0"),
    (file_of([(0x10, struct.pack("<QQ", 96, 32))]), "go round in circles"),
    (file_of([(0x0C, b"\7" + bytes(20))]), "an HDF5 attribute is of version 7"),
    (file_of([(0x0C, fixed_text("a", "text")[:20])]), "bytes are needed at byte"),
]


@pytest.mark.parametrize(("data", "problem"), REFUSED, ids=[row[1] for row in REFUSED])
def test_a_file_that_contradicts_itself_is_refused(data: bytes, problem: str) -> None:
    contents = look(data)
    assert contents.container == "hdf5"
    assert isinstance(contents.problem, DamagedFile)
    assert problem in str(contents.problem)


def test_a_newer_version_is_not_guessed_at() -> None:
    contents = look(b"\x89HDF\r\n\x1a\n\x04" + bytes(100))
    assert isinstance(contents.problem, UnsupportedContent)
    assert "this is an HDF5 file of version 4" in str(contents.problem)


# --- Groups and data sets ------------------------------------------------------------------------

NOT_THERE = (1 << 64) - 1


class Tree(Hdf5):
    """A file of groups and data sets."""

    def __init__(self) -> None:
        super().__init__()
        self.end = 96

    def group(self, **members: int) -> int:
        tree, heap = self.names(list(members), members)
        return self.put(old_header([(0x11, struct.pack("<QQ", tree, heap))]))

    def data(self, kind: bytes, shape: tuple[int, ...] = (2, 3), place: int = 96) -> int:
        return self.put(data_set(kind, shape, place))

    def file(self, root: int) -> bytes:
        return superblock(0, self.end, root) + self.bytes()[96:]


FLOAT32 = hdf5_number(1, 0x20, 4)
KINDS = {
    "int8": hdf5_number(0, 8, 1),
    "uint16": hdf5_number(0, 0, 2),
    "int64": hdf5_number(0, 8, 8),
    "float16": hdf5_number(1, 0x20, 2, exponent_bits=5),
    "bfloat16": hdf5_number(1, 0x20, 2),
    "float32": FLOAT32,
    "float64": hdf5_number(1, 0x20, 8),
    "bool": hdf5_number(8, 0, 1),
}


def test_the_data_sets_of_all_groups_are_listed_with_shape_and_type() -> None:
    tree = Tree()
    layers = tree.group(dense=tree.group(**{name: tree.data(kind) for name, kind in KINDS.items()}))
    text = tree.data(struct.pack("<BBxxI", 0x13, 0, 5))
    big = tree.data(hdf5_number(0, 9, 2), (), place=200)
    unwritten = tree.data(FLOAT32, (0,), place=NOT_THERE)
    contents = look(tree.file(tree.group(layers=layers, text=text, big=big, unwritten=unwritten)))
    assert contents.kind == "HDF5 file: layers, text, big, unwritten; 11 data sets"
    found = {path: (entry.dtype, entry.shape) for path, entry in contents.root.items()}
    inner = {f"layers/dense/{name}": (name, (2, 3)) for name in KINDS}
    assert found == {"big": ("int16", ()), "unwritten": ("float32", (0,)), **inner}
    assert contents.root["big"].storage.byteorder == "big"
    assert contents.root["big"].storage.nbytes == 2
    assert contents.root["unwritten"].storage.offset is None
    assert contents.findings == ()
    assert isinstance(contents.problem, UnsupportedContent)


def test_a_group_in_itself_and_an_object_of_two_names_are_told_once() -> None:
    tree = Tree()
    weights = tree.data(FLOAT32)
    inner = tree.group(a=weights, again=weights)
    root = tree.group(inner=inner, same=inner)
    leaf = next(place for place, data in tree.blocks.items() if data.startswith(b"SNOD"))
    tree.blocks[leaf] = tree.blocks[leaf].replace(
        struct.pack("<Q", weights), struct.pack("<Q", root), 1
    )
    contents = look(tree.file(root))
    assert list(contents.root) == ["inner/again"]
    assert contents.findings == ()


def test_a_broken_group_is_told_beside_what_is_whole() -> None:
    tree = Tree()
    contents = look(tree.file(tree.group(fine=tree.data(FLOAT32), bad=8)))
    assert list(contents.root) == ["fine"]
    [finding] = contents.findings
    assert (finding.rule, finding.severity, finding.place) == ("not-looked-into", "damaged", "bad")
    assert contents.kind.endswith("; at least 1 data set")


@pytest.mark.parametrize(
    ("shape", "problem"),
    [((1 << 62, 1 << 62), "more elements than can be"), ((1 << 40,), "the file is truncated")],
)
def test_a_data_set_that_can_not_be_is_damaged(shape: tuple[int, ...], problem: str) -> None:
    tree = Tree()
    contents = look(tree.file(tree.group(w=tree.data(FLOAT32, shape))))
    [finding] = contents.findings
    assert finding.severity == "damaged"
    assert problem in finding.text


def test_deep_and_many_groups_are_followed_only_so_far() -> None:
    tree = Tree()
    inner = tree.group(w=tree.data(FLOAT32))
    for _ in range(40):
        inner = tree.group(g=inner)
    contents = look(tree.file(tree.group(g=inner, w=tree.data(FLOAT32))))
    assert list(contents.root) == ["w"]
    assert contents.kind == "HDF5 file: g, w; at least 1 data set"
    tree = Tree()
    leaves = [tree.group(**{str(n): tree.data(FLOAT32) for n in range(8)}) for _ in range(160)]
    rows = {
        f"r{row}": tree.group(**{str(n): leaf for n, leaf in enumerate(leaves[row::20])})
        for row in range(20)
    }
    contents = look(tree.file(tree.group(**rows)))
    assert len(contents.root) == 1_000
    assert contents.kind.endswith("; at least 1,000 data sets")


def test_the_entries_are_no_model_that_can_be_loaded(tmp_path: Path) -> None:
    tree = Tree()
    (tmp_path / "a.h5").write_bytes(tree.file(tree.group(w=tree.data(FLOAT32))))
    found = inspect(tmp_path / "a.h5")
    assert found.role == "object"
    assert [(item.path, type(item.entry)) for item in found.tensors()] == [("w", TensorEntry)]
    with pytest.raises(UnsupportedContent, match="which torchkeep describes and does not load"):
        torchkeep.load(tmp_path / "a.h5")
