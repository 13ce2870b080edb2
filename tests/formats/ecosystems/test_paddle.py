"""What PaddlePaddle's programs and parameters say about themselves."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from formats.building_foreign import field, paddle_parameter, paddle_program
from formats.samples_foreign import FLOATS
from torchkeep.contents import Array, Contents, Storage
from torchkeep.errors import DamagedFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.ecosystems.paddle import is_paddle, named_paddle, sniff
from torchkeep.pickles.limits import DEFAULT_LIMITS

TABLE = "StructuredToParameterName@@"


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model")), DEFAULT_LIMITS)


def test_a_program_is_counted() -> None:
    contents = look(paddle_program())
    assert contents.container == "paddle"
    assert contents.kind == "PaddlePaddle program: 4 operators, 1 variable"
    assert contents.metadata == {
        "version": "2000000",
        "blocks": "1",
        "operators": "2 matmul_v2, 1 feed, 1 fetch",
    }
    assert isinstance(contents.problem, UnsupportedContent)


def test_parameters_are_listed_with_their_places() -> None:
    data = paddle_parameter(5, (2, 3), FLOATS.tobytes()) + paddle_parameter(3, (), bytes(8))
    contents = look(data)
    assert contents.kind == "PaddlePaddle parameters: 2 tensors without names"
    entry = contents.root["0"]
    assert (entry.dtype, entry.shape) == ("float32", (2, 3))
    assert data[entry.storage.offset :].startswith(FLOATS.tobytes())
    assert contents.root["1"].dtype == "int64"


def test_levels_of_detail_are_stepped_over() -> None:
    first = paddle_parameter(5, (1,), bytes(4))
    second = paddle_parameter(5, (2,), bytes(8))
    second = second[:4] + struct.pack("<QQ", 1, 16) + bytes(16) + second[12:]
    assert look(first + second).root["1"].shape == (2,)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (paddle_program()[:-30], "bytes are needed at byte"),
        (paddle_parameter(5, (2, 3), bytes(20)), "tensor '0' needs bytes"),
        (paddle_parameter(5, (2,), bytes(8)) + b"\1" * 3, "bytes are needed at byte"),
        (paddle_parameter(5, (2,), bytes(8)) + struct.pack("<IQ", 0, 1 << 63), "bytes are needed"),
        (paddle_parameter(5, (-1,), b""), "negative size"),
    ],
)
def test_damage_is_told(data: bytes, problem: str) -> None:
    contents = look(data)
    assert contents.container == "paddle"
    assert isinstance(contents.problem, DamagedFile)
    assert problem in str(contents.problem)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (paddle_parameter(99, (1,), b"x"), "parameter 0 has an unknown type 99"),
        (paddle_parameter(5, (1,), bytes(4)) + b"\1" + bytes(30), "parameter 1 is of a newer"),
        (
            paddle_parameter(5, (1,), bytes(4)) + struct.pack("<IQIi", 0, 0, 0, 5000) + bytes(5000),
            "described in 5,000 bytes",
        ),
    ],
)
def test_what_is_newer_is_not_guessed_at(data: bytes, problem: str) -> None:
    contents = look(data)
    assert isinstance(contents.problem, UnsupportedContent)
    assert problem in str(contents.problem)


@pytest.mark.parametrize(
    "data",
    [
        bytes(100),
        field(1, field(1, "node")),  # TensorFlow's graphs start so
        field(1, field(1, 0) + field(2, 0)),
        struct.pack("<IQIi", 0, 0, 0, 8) + b"\xff" * 50,
    ],
)
def test_other_messages_are_not_taken_for_programs(data: bytes) -> None:
    assert not sniff(data, len(data))


def test_a_pickle_of_paddles_is_told_by_its_table() -> None:
    array = np.zeros(2)
    assert is_paddle({"w": array, TABLE: {"w": "w_0"}})
    assert is_paddle({"model": {"w": array, TABLE: {"w": "w_0"}}})
    assert is_paddle({"w@@.0": array, "UnpackBigParamInfor@@": {}})
    assert not is_paddle({"w": array})
    assert not is_paddle([TABLE])
    assert not is_paddle(None)


def named(name: str) -> tuple[str, Array]:
    return name, Array("float32", (1,), False, Storage("", 4, None, data=bytes(4)))


def test_a_dictionary_of_several_is_told_by_paddles_own_names() -> None:
    model = {"0.weight": named("linear_0.w_0"), "1.bias": named("batch_norm1d_0.b_0")}
    checkpoint = {"epoch": 1, "model": model, "optimizer": {"lr": 0.1}}
    assert is_paddle(checkpoint)
    assert not is_paddle({"model": {}})
    assert not is_paddle({"model": {**model, "2.bias": named("bias")}})
    assert not is_paddle({"model": {"0.weight": ("linear_0.w_0", 5)}})
    contents = named_paddle(Contents(Path("m.pdparams"), 9, "pickle", checkpoint))
    assert contents.kind == "PaddlePaddle parameters: 4 values"


def test_a_pickle_of_paddles_gets_its_name() -> None:
    root = {"w": np.zeros(2), TABLE: {"w": "w_0"}}
    contents = named_paddle(Contents(Path("m.pdparams"), 9, "pickle", root))
    assert (contents.container, contents.kind) == ("paddle", "PaddlePaddle parameters: 1 value")
