"""What an ONNX model says about itself."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from formats.building import rules
from formats.building_foreign import (
    field,
    onnx_model,
    onnx_node,
    onnx_tensor,
    onnx_value,
    varint,
)
from formats.samples_foreign import FLOATS, WEIGHT
from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.ecosystems.onnx import sniff
from torchkeep.pickles.limits import DEFAULT_LIMITS


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.onnx")), DEFAULT_LIMITS)


def test_the_header_the_lists_and_the_weights_are_read() -> None:
    facts = field(6, "a model\nof mine") + field(14, field(1, "author") + field(2, "me"))
    data = onnx_model(nodes=[onnx_node("MatMul")] * 2, initializers=[WEIGHT], more=facts)
    contents = look(data)
    assert contents.container == "onnx"
    assert contents.kind == "ONNX model by pytorch 2.1.0, opset 17, 2 nodes, 1 initializer"
    assert contents.metadata == {
        "doc_string": "a model\nof mine",
        "author": "me",
        "ir_version": "8",
        "producer": "pytorch 2.1.0",
        "opset": "ai.onnx 17",
        "graph": "main",
        "inputs": "x float [batch, 3]",
        "outputs": "y float [2]",
    }
    entry = contents.root["w"]
    assert (entry.dtype, entry.shape, entry.stride) == ("float32", (2, 3), (3, 1))
    start = entry.storage.offset
    assert data[start : start + entry.storage.nbytes] == FLOATS.tobytes()
    assert isinstance(contents.problem, UnsupportedContent)
    assert contents.findings == ()


def test_packed_dims_and_packed_elements_are_read() -> None:
    tensor = field(1, varint(1) + varint(2)) + field(2, 11) + field(8, "d")
    tensor += field(10, struct.pack("<2d", 1, 2))
    entry = look(onnx_model(initializers=[tensor])).root["d"]
    assert (entry.dtype, entry.shape) == ("float64", (1, 2))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (onnx_tensor("t", 8, (2,)), "string, shape [2]"),
        (onnx_tensor("t", 22, (3,), b"xy"), "int4, shape [3]"),
        (onnx_tensor("t", 99, (3,), b"xyz"), "type 99, shape [3]"),
        (onnx_tensor("t", 7, (2,)) + field(7, varint(1) + varint(2)), "int64, shape [2]"),
        (onnx_tensor("t", 1, (2,), location="w.bin"), "float, shape [2] in another file"),
    ],
)
def test_what_has_no_place_is_named(tensor: bytes, said: str) -> None:
    assert look(onnx_model(initializers=[tensor])).root == {"t": said}


# --- What may do harm ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "is_outside"),
    [
        ("weights.bin", False),
        ("a/b..c/w", False),
        ("../weights.bin", True),
        ("a/../../w", True),
        ("/etc/passwd", True),
        ("C:\\w", True),
        ("a\\..\\..\\w", True),
        ("\\\\server\\share", True),
    ],
)
def test_weights_outside_of_the_folder_are_dangerous(location: str, is_outside: bool) -> None:
    contents = look(onnx_model(initializers=[onnx_tensor("w", 1, (2,), location=location)]))
    assert rules(contents) == ([("external-path", "dangerous")] if is_outside else [])
    assert contents.metadata["external_data"] == repr(location)
    assert contents.kind.endswith("1 tensor in other files")


OUTSIDE = onnx_tensor("w", 1, (2,), location="../w")
PLACES = {
    "a node": onnx_model(nodes=[onnx_node("Constant", attribute=field(5, OUTSIDE))]),
    "a list in a node": onnx_model(nodes=[onnx_node("A", attribute=field(10, OUTSIDE))]),
    "a graph in a node": onnx_model(nodes=[onnx_node("If", attribute=field(6, field(5, OUTSIDE)))]),
    "graphs in a node": onnx_model(nodes=[onnx_node("If", attribute=field(11, field(5, OUTSIDE)))]),
    "a sparse initializer": onnx_model(graph=field(15, field(1, OUTSIDE))),
    "a sparse attribute": onnx_model(
        nodes=[onnx_node("A", attribute=field(22, field(2, OUTSIDE)))]
    ),
    "a function": onnx_model(
        more=field(25, field(7, onnx_node("Constant", attribute=field(5, OUTSIDE))))
    ),
    "a training graph": onnx_model(more=field(20, field(2, field(5, OUTSIDE)))),
}


@pytest.mark.parametrize("place", PLACES)
def test_paths_are_found_wherever_tensors_are(place: str) -> None:
    assert rules(look(PLACES[place])) == [("external-path", "dangerous")]


def test_operators_that_call_python_need_trust() -> None:
    contents = look(onnx_model(nodes=[onnx_node("PythonOp", domain="com.microsoft")] * 3))
    assert rules(contents) == [("python-operator", "needs-trust"), ("custom-operators", "note")]


def test_operators_of_other_domains_are_noted_unless_the_model_defines_them() -> None:
    nodes = [onnx_node("Foo", domain="my.ops"), onnx_node("Bar", domain="local")]
    contents = look(onnx_model(nodes=nodes, more=field(25, field(10, "local"))))
    assert [finding.text for finding in contents.findings] == [
        "operators of the domain 'my.ops', in 1 node, need a runtime that has them"
    ]


def test_two_initializers_of_one_name_are_noted() -> None:
    assert rules(look(onnx_model(initializers=[WEIGHT, WEIGHT]))) == [("duplicate", "note")]


# --- Damage --------------------------------------------------------------------------------------

REFUSED = [
    (onnx_model(opset=None), "the ONNX model is truncated: it has no set of operators"),
    (field(1, 8) + field(2, "pytorch"), "it has no graph and no set of operators"),
    (onnx_model()[:30], "bytes are needed at byte"),
    (onnx_model() + b"\0" * 9, "no field starts at"),
    (onnx_model(more=b"\x7b"), "no field starts at"),
    (onnx_model(initializers=[onnx_tensor("w", 1, (2,), b"xyz")]), "initializer 'w' has 3 bytes"),
    (onnx_model(initializers=[onnx_tensor("w", 1, [1] * 65, b"")]), "more than 64 dimensions"),
    (onnx_model(initializers=[field(1, b"\1" * 900)]), "more than 64 numbers"),
    (onnx_model(initializers=[onnx_tensor("w", 1, (-1,), b"")]), "negative size"),
    (onnx_model(more=field(14, 5)), "a number stands where"),
    (onnx_model(more=field(8, field(2, "x"))), "bytes stand at"),
    (onnx_model(more=b"\x28" + b"\xff" * 11), "has more than 64 bits"),
]


@pytest.mark.parametrize(("data", "problem"), REFUSED, ids=[row[1] for row in REFUSED])
def test_a_model_that_contradicts_itself_is_refused(data: bytes, problem: str) -> None:
    contents = look(data)
    assert contents.container == "onnx"
    assert isinstance(contents.problem, DamagedFile)
    assert problem in str(contents.problem)


def test_a_model_older_than_sets_of_operators_needs_none() -> None:
    data = field(1, 2) + field(2, "old") + field(7, field(2, "g"))
    assert look(data).kind == "ONNX model by old, 0 nodes, 0 initializers"


@pytest.mark.parametrize(
    "data",
    [
        field(1, 1) + field(2, field(1, "serve") + field(2, b"\n\x02")),  # a SavedModel
        field(1, 4) + field(2, field(1, b"\n\x05image")) + field(500, b"x"),  # Core ML
        field(1, 0) + field(7, field(2, "g")),
        field(1, 8),
        field(1, 8) + field(9, "x"),
        field(1, 8) + field(2, 5),
        field(1, 8) + field(7, b"\xff\xff"),
        b"\x08\x08\x08\x08\x08",
    ],
)
def test_other_messages_are_not_taken_for_models(data: bytes) -> None:
    assert not sniff(data, len(data))


@pytest.mark.parametrize(
    "data",
    [
        field(1, 8) + field(7, onnx_value("x", 1, [1])),
        field(1, 8) + field(3, "") + field(7, field(2, "g")),
        field(1, 8) + field(2, "pytorch") + field(6, "x" * 1000),
        field(1, 8) + field(8, field(2, 17)) + field(7, field(2, "g")),
    ],
)
def test_models_are_known_by_their_first_fields(data: bytes) -> None:
    assert sniff(data[:512], len(data))
