"""What an HDF5 file says about itself, and what is in a Keras model that runs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from formats.building_foreign import (
    fixed_text,
    hdf5,
    old_header,
    superblock,
    texts_attribute,
)
from formats.samples_foreign import KERAS, LAMBDA
from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.ecosystems.keras import find_code
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
