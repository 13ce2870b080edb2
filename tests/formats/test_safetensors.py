"""Safetensors: every header is read as the safetensors package reads it, or refused with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import torchkeep
from formats.building import safetensors_file
from torchkeep.errors import (
    DamagedFile,
    FileProblem,
    LimitReached,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.formats import describe
from torchkeep.identify import inspect, verify
from torchkeep.pickles.limits import Limits
from torchkeep.tensors import same_bits


def row(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> dict[str, Any]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def names(path: Path) -> list[str] | None:
    """Return the tensors' names as the package reads them; None if it refuses the file."""
    try:
        with safe_open(path, "numpy") as file:
            return sorted(file.keys())
    except (SafetensorError, OSError, ValueError):
        return None


def check_agreement(path: Path) -> None:
    """Assert that the package and we read the same names, or that both refuse the file."""
    try:
        mine = sorted(describe(path).root)
    except FileProblem:
        assert names(path) is None
    else:
        assert names(path) == mine


FINE: list[tuple[Any, int]] = [
    ({}, 0),
    ({"a": row(0, 4)}, 4),
    ({"b": row(4, 6), "a": row(0, 4)}, 6),
    ({"a": row(0, 8, [2, 1], "F32"), "__metadata__": {"format": "pt"}}, 8),
    ({"a": row(0, 0, [0, 5]), "b": row(0, 0), "c": row(0, 3)}, 3),
    ({"a": row(0, 4, [], "F32")}, 4),
    ({"": row(0, 1)}, 1),
    ({"a": {**row(0, 1), "note": 1}}, 1),
    (json.dumps({"a": row(0, 1)}).encode() + b"   ", 1),
    ({"a": row(0, 1), "__metadata__": None}, 1),
]


@pytest.mark.parametrize(("header", "nbytes"), FINE)
def test_a_valid_file_is_read_as_the_package_reads_it(path: Path, header: Any, nbytes: int) -> None:
    safetensors_file(path, header, bytes(nbytes))
    assert names(path) is not None
    check_agreement(path)


REFUSED: list[tuple[str, Any, int, str]] = [
    ("overlap", {"a": row(0, 4), "b": row(2, 6)}, 6, "tensor 'b' overlaps with another"),
    ("same bytes", {"a": row(0, 4), "b": row(0, 4)}, 4, "tensor 'b' overlaps with another"),
    ("hole", {"a": row(0, 4), "b": row(5, 6)}, 6, "tensor 'b' leaves a hole before it"),
    ("hole at the start", {"a": row(1, 4)}, 4, "tensor 'a' leaves a hole before it"),
    ("bytes behind", {"a": row(0, 4)}, 5, "1 bytes follow the last tensor"),
    ("truncated", {"a": row(0, 4)}, 3, "the file is truncated"),
    ("negative offset", {"a": row(-4, 0, [4])}, 4, "broken shape or broken offsets"),
    ("negative size", {"a": row(0, 4, [-4])}, 4, "broken shape or broken offsets"),
    ("backwards", {"a": row(4, 0, [4])}, 4, "has -4 bytes"),
    ("wrong size", {"a": row(0, 4, [5])}, 4, r"has 4 bytes, and its shape \(5,\)"),
    ("wrong dtype size", {"a": row(0, 4, [4], "F32")}, 4, "4-byte elements needs 16"),
    ("overflow", {"a": row(0, 0, [1 << 40, 1 << 40], "F64")}, 0, "has 0 bytes"),
    ("dimensions", {"a": row(0, 1, [1] * 5000)}, 1, "broken shape"),
    ("huge dimensions", {"a": row(0, 1, [(1 << 62)] * 5000)}, 1, "broken shape"),
    ("huge number", {"a": row(0, 1, [1 << 64])}, 1, "broken shape"),
    ("fraction", {"a": row(0, 1, [1.0])}, 1, "broken shape"),
    ("flag for a size", {"a": row(0, 1, [True])}, 1, "broken shape"),
    ("three offsets", {"a": {**row(0, 1), "data_offsets": [0, 1, 2]}}, 1, "broken offsets"),
    ("no dtype", {"a": {"shape": [], "data_offsets": [0, 1]}}, 1, "not described by dtype"),
    ("unknown dtype", {"a": row(0, 1, [1], "F1")}, 1, "dtype 'F1', which is none of the format"),
    ("dtype is a list", {"a": {**row(0, 1), "dtype": ["U8"]}}, 1, "a dtype that is no text"),
    ("no row", {"a": 5}, 0, "not described by dtype"),
    ("metadata is a list", {"__metadata__": ["a"]}, 0, "__metadata__ is not a table of texts"),
    ("metadata of numbers", {"__metadata__": {"a": 1}}, 0, "__metadata__ is not a table of texts"),
    ("twice", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":5}', 1, "stands twice"),
    ("cut JSON", b'{"a":{"dtype":', 0, "the header is no valid JSON"),
    ("NaN", b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', 1, "NaN is no number"),
    ("deep", b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 0, "the header is nested too deeply"),
    ("bytes that are no text", b'{"\xff":5}', 0, "the header is no valid JSON"),
    ("half a pair", b'{"\\ud800":5}', 0, "the header is no valid JSON"),
    ("two objects", b"{}{}", 0, "the header is no valid JSON"),
]


@pytest.mark.parametrize(
    ("header", "nbytes", "problem"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_broken_header_is_refused_with_its_reason(
    path: Path, header: Any, nbytes: int, problem: str
) -> None:
    safetensors_file(path, header, bytes(nbytes))
    with pytest.raises(FileProblem, match=problem) as caught:
        describe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 400


def test_what_is_refused_here_is_refused_by_the_package_but_for_known_reasons(path: Path) -> None:
    lenient = set()
    for name, header, nbytes, _ in REFUSED:
        safetensors_file(path, header, bytes(nbytes))
        if names(path) is not None:
            lenient.add(name)
    # Shapes that PyTorch can't have.
    assert lenient <= {"dimensions"}


def test_a_header_in_another_encoding_is_refused(path: Path) -> None:
    safetensors_file(path, b"{\0" + json.dumps({})[1:].encode("utf-16-le"))
    with pytest.raises(DamagedFile, match="no valid JSON"):
        describe(path)
    check_agreement(path)


@pytest.mark.parametrize("nbytes", [100_000_001, 1 << 62, (1 << 64) - 1])
def test_an_impossible_header_length_is_no_safetensors(path: Path, nbytes: int) -> None:
    safetensors_file(path, b"{}", nbytes=nbytes)
    with pytest.raises(NotAModelFile, match="of no known kind"):
        describe(path)
    assert names(path) is None


def test_a_header_that_is_longer_than_the_file_is_truncated(path: Path) -> None:
    safetensors_file(path, b'{"a', nbytes=90_000_000)
    with pytest.raises(DamagedFile, match="the file is truncated"):
        describe(path)


def test_a_long_header_reaches_a_limit(path: Path) -> None:
    safetensors_file(path, {"a" * 200: row(0, 1)}, b"x")
    with pytest.raises(LimitReached, match="header_nbytes=100"):
        describe(path, limits=Limits(header_nbytes=100))


def test_long_names_do_not_make_long_messages(path: Path) -> None:
    safetensors_file(path, {"a" * 100_000: row(0, 1, [2])}, b"x")
    with pytest.raises(DamagedFile) as caught:
        describe(path)
    assert len(str(caught.value)) < 600


def test_packed_four_bit_floats_are_pairs(path: Path) -> None:
    safetensors_file(path, {"a": row(0, 3, [1, 6], "F4")}, b"abc")
    entry = describe(path).root["a"]
    assert (entry.dtype, entry.shape, entry.storage.nbytes) == ("float4_e2m1fn_x2", (1, 3), 3)


BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Every dtype of the format's specification."""


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_format_is_described_as_the_package_reads_it(
    path: Path, dtype: str
) -> None:
    nbytes = 3 * 8 * BITS[dtype] // 8
    payload = bytes(n % 2 for n in range(nbytes))
    safetensors_file(path, {"w.a": row(0, nbytes, [3, 8], dtype)}, payload)
    check_agreement(path)
    found = inspect(path)
    assert found.integrity.ok
    assert found.state_dicts[0].nbytes == nbytes
    entry = found.tensors()[0].entry
    try:
        expected = load_file(path)["w.a"]
    except SafetensorError:
        assert (entry.dtype, entry.shape) == (dtype.lower(), (3, 8))
        problem = rf"tensor 'w.a' has dtype {dtype.lower()}, which PyTorch"
        with torchkeep.open(path) as file, pytest.raises(UnsupportedContent, match=problem):
            file["w.a"]
    else:
        assert (f"torch.{entry.dtype}", entry.shape) == (str(expected.dtype), tuple(expected.shape))
        assert same_bits(torchkeep.open(path)["w.a"], expected)
    assert verify(path).ok


def test_four_bit_floats_that_are_no_pairs_are_described_by_the_files_own_name(path: Path) -> None:
    safetensors_file(path, {"a": row(0, 3, [2, 3], "F4")}, b"abc")
    check_agreement(path)
    entry = describe(path).root["a"]
    assert (entry.dtype, entry.shape, entry.nbytes) == ("f4", (2, 3), 3)


@pytest.mark.parametrize(
    ("dtype", "shape", "problem"),
    [
        ("F4", [3, 3], "tensor 'a' ends within a byte"),
        ("F4", [], "tensor 'a' ends within a byte"),
        ("F6_E2M3", [2], "tensor 'a' ends within a byte"),
        ("F6_E2M3", [8], r"has 3 bytes, and its shape \(8,\) of 6-bit elements needs 6"),
    ],
)
def test_a_size_in_bits_that_does_not_fit_is_refused(
    path: Path, dtype: str, shape: list[int], problem: str
) -> None:
    safetensors_file(path, {"a": row(0, 3, shape, dtype)}, b"abc")
    assert names(path) is None
    with pytest.raises(DamagedFile, match=problem):
        describe(path)


def test_metadata_is_kept_and_is_no_tensor(path: Path) -> None:
    safetensors_file(path, {"__metadata__": {"format": "pt", "é": ""}, "a": row(0, 1)}, b"x")
    contents = describe(path)
    assert contents.metadata == {"format": "pt", "é": ""}
    assert list(contents.root) == ["a"]
    assert contents.pickle_protocol is None


rows = st.builds(
    row,
    st.integers(-1, 6),
    st.integers(0, 8),
    st.none() | st.lists(st.integers(-1, 4), max_size=3),
    st.sampled_from(["U8", "F32", "I16", "BOOL", "X"]),
)
headers = st.dictionaries(st.sampled_from(["a", "b", "c"]), rows, max_size=3)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(header=headers, nbytes=st.integers(0, 10))
def test_any_header_is_read_alike_or_refused_by_both(
    tmp_path_factory: pytest.TempPathFactory, header: Any, nbytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    safetensors_file(path, header, bytes(nbytes))
    check_agreement(path)
