"""NumPy's arrays and archives of them, as NumPy itself writes and reads them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats.samples_foreign import ARRAYS
from torchkeep.contents import Contents, Global, TensorEntry
from torchkeep.errors import DamagedFile, FileProblem, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.numpy import describe_archive, is_archive_of_arrays
from torchkeep.formats.zips.rooted import Archive, open_archive
from torchkeep.pickles.limits import DEFAULT_LIMITS


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("a.npy")), DEFAULT_LIMITS)


def saved(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy(header: str, rest: bytes = b"", *, version: int = 1) -> bytes:
    text = header.encode("utf-8" if version == 3 else "latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + rest


def archived(*, packed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def look_into(data: bytes) -> Contents:
    file = MemoryFile(data, Path("a.npz"))
    directory, _ = open_archive(file, DEFAULT_LIMITS)
    assert is_archive_of_arrays(directory)
    return describe_archive(Archive(file, directory, "", DEFAULT_LIMITS))


# --- One array -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_a_tensor_with_its_place(name: str) -> None:
    array = ARRAYS[name]
    data = saved(array)
    contents = look(data)
    entry = contents.root
    assert isinstance(entry, TensorEntry)
    assert (entry.dtype, entry.shape) == (array.dtype.newbyteorder("=").name, array.shape)
    start = entry.storage.offset
    assert start is not None
    got = np.frombuffer(data[start:], array.dtype, array.size)
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    assert np.array_equal(got.reshape(array.shape, order=order), array)  # type: ignore[call-overload]
    if array.size:
        assert entry.stride == tuple(step // array.itemsize for step in array.strides)
    assert entry.storage.byteorder == ("big" if array.dtype.byteorder == ">" else "little")
    assert (contents.container, contents.problem, contents.findings) == ("numpy", None, ())
    assert contents.kind.startswith(f"NumPy array of {entry.dtype}, shape [")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_all_versions_of_the_format_are_read(version: int) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
    contents = look(npy(header, bytes(8), version=version))
    assert contents.root.shape == (2,)
    assert contents.metadata == {"version": f"{version}.0", "dtype": "<f4"}


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array(["abc"]), "array of <U3, shape [1]"),
        (np.zeros(2, dtype="datetime64[s]"), "array of <M8[s], shape [2]"),
        (np.zeros((2, 2), dtype="g"), f"array of {np.dtype('g').str}, shape [2, 2]"),
        (np.zeros(2, dtype=[("a", "<f4"), ("b", "<i8", (2,))]), "array of a record of 2 fields"),
    ],
)
def test_types_that_pytorch_lacks_are_named(array: Any, said: str) -> None:
    contents = look(saved(array))
    assert contents.root.startswith(said)
    assert [finding.rule for finding in contents.findings] == ["dtype"]
    assert contents.findings[0].severity == "note"
    assert contents.problem is None


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("never printed",))


def test_an_array_of_objects_is_a_pickle_that_is_judged_and_not_run(capsys: Any) -> None:
    contents = look(saved(np.array([Evil(), None], dtype=object), allow_pickle=True))
    assert Global("builtins", "print") in contents.globals
    assert contents.pickle_protocol == 4
    assert contents.kind == "NumPy array of objects (a pickle), shape [2]"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "descr",
    ["'|O'", "'O'", "'<O8'", "'object'", "[('a', '<f4'), ('b', '|O')]", "('|O', (2,))"],
)
def test_no_spelling_hides_that_an_array_is_a_pickle(descr: str) -> None:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}"
    contents = look(npy(header, pickle.dumps(Evil(), 2)))
    assert Global("builtins", "print") in contents.globals


def test_bytes_behind_an_array_are_noticed() -> None:
    contents = look(saved(np.zeros(2)) + b"xy")
    assert [(f.rule, f.severity, f.text) for f in contents.findings] == [
        ("trailing-bytes", "ambiguous", "2 bytes follow the array")
    ]


HEADERS = [
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", ""),
    ("{'shape': (2,), 'descr': \"<f4\", 'fortran_order': False}", ""),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (2L,)}", ""),
    ("", "not what Python would write"),
    ("{'descr': '<f4', 'fortran_order': False}", "not made of descr, fortran_order and shape"),
    ("[1, 2]", "not made of descr, fortran_order and shape"),
    ("{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}", "broken order or shape"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (2)}", "broken order or shape"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}", "not made of numbers"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", "not made of numbers"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, )}", "negative size"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999,)}", "more elements"),
    ("{'descr': 5, 'fortran_order': False, 'shape': (2,)}", "broken element type"),
    ("{'descr': [5], 'fortran_order': False, 'shape': (2,)}", "broken element type"),
    ("{'descr': '\\x4f', 'fortran_order': False, 'shape': (2,)}", "not what Python would write"),
    ("{'descr': '<f4' 'x', 'fortran_order': False, 'shape': (2,)}", "not what Python would write"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} + {}", "not what Python would write"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,,)}", "not what Python would write"),
    ("{'descr': __import__('os'), 'fortran_order': False, 'shape': ()}", "not what Python would"),
    ("{1: 2}", "not what Python would write"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (1 2)}", "not what Python would write"),
    ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2", "not what Python would write"),
    ("(" * 100, "not what Python would write"),
]


@pytest.mark.parametrize(("header", "problem"), HEADERS)
def test_a_header_is_read_without_python(header: str, problem: str) -> None:
    contents = look(npy(header, bytes(8)))
    if not problem:
        assert contents.problem is None
        assert contents.root.shape == (2,)
    else:
        assert isinstance(contents.problem, DamagedFile)
        assert problem in str(contents.problem)


def test_an_unknown_version_is_not_guessed_at() -> None:
    contents = look(b"\x93NUMPY\x04\x00" + bytes(20))
    assert isinstance(contents.problem, UnsupportedContent)
    assert "version 4.0 of NumPy's format" in str(contents.problem)


def test_a_header_that_no_array_needs_is_refused() -> None:
    contents = look(npy(" " * 70_000, version=2))
    assert "has 70,000 bytes, far more than any needs" in str(contents.problem)


# --- Archives ------------------------------------------------------------------------------------


def test_an_archive_is_its_arrays_by_name() -> None:
    data = archived(**ARRAYS)
    contents = look_into(data)
    assert list(contents.root) == list(ARRAYS)
    assert contents.kind == f"NumPy archive of {len(ARRAYS)} arrays"
    for name, array in ARRAYS.items():
        storage = contents.root[name].storage
        raw = data[storage.offset : storage.offset + storage.nbytes]
        assert raw == array.tobytes("A")
    assert contents.findings == ()


def test_a_compressed_array_has_no_place() -> None:
    contents = look_into(archived(packed=True, w=np.zeros((100, 100)), s=np.array("text")))
    entry = contents.root["w"]
    assert (entry.dtype, entry.shape, entry.storage.offset) == ("float64", (100, 100), None)
    assert [(f.rule, f.place) for f in contents.findings] == [("dtype", "s")]


@pytest.mark.parametrize("packed", [False, True])
def test_objects_in_an_archive_are_judged(packed: bool) -> None:
    array = np.array([Evil()], dtype=object)
    contents = look_into(archived(packed=packed, a=np.zeros(3), b=array))
    assert Global("builtins", "print") in contents.globals
    assert contents.pickle_protocol == 4


def test_a_compressed_array_that_is_cut_is_told() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", saved(np.zeros(1000))[:-80])
    with pytest.raises(DamagedFile, match="array 'w' is truncated: 80 bytes are missing"):
        look_into(buffer.getvalue())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_record_that_is_no_array_is_told(method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("w.npy", b"\x80\x02N." * 50)
    with pytest.raises(DamagedFile, match="does not start as NumPy's do"):
        look_into(buffer.getvalue())


def test_a_long_header_in_a_compressed_array_is_read() -> None:
    fields = [(f"field_{number}", "<f4") for number in range(1000)]
    contents = look_into(archived(packed=True, records=np.zeros(1, dtype=fields)))
    assert contents.root["records"] == "array of a record of 1,000 fields, shape [1]"


def test_a_bomb_is_not_unpacked() -> None:
    data = archived(packed=True, w=np.zeros(10_000_000))
    assert len(data) < 100_000
    assert look_into(data).root["w"].shape == (10_000_000,)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_named(method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("w.npy", saved(np.zeros(1000)))
    with pytest.raises(FileProblem, match=f"'w.npy' is packed by method {method}"):
        look_into(buffer.getvalue())


def test_an_archive_with_anything_else_is_none_of_numpys() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w.npy", saved(np.zeros(1)))
        archive.writestr("evil.pkl", b"x")
    directory, _ = open_archive(MemoryFile(buffer.getvalue(), Path("a")), DEFAULT_LIMITS)
    assert not is_archive_of_arrays(directory)
