"""What a pickle holds besides its opcodes: files in bytes, and arrays behind opcodes."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchkeep.contents import Array, Object, TensorEntry
from torchkeep.formats import describe, examine


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("true",)


class Boxed:
    """Pickled as what `torch.storage._load_from_bytes` would make of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.data,)


def names(path: Path) -> list[str]:
    return [str(name) for name in examine(path).globals]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_of_a_plain_pickle_are_entries_with_their_bytes(
    protocol: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.pkl"
    weight = torch.arange(6.0)
    path.write_bytes(pickle.dumps({"w": weight, "again": weight, "other": weight[2:]}, protocol))
    root = describe(path).root
    assert all(isinstance(entry, TensorEntry) for entry in root.values())
    assert root["w"] is root["again"]
    assert root["w"].storage.data == weight.numpy().tobytes()
    assert (root["other"].shape, root["other"].storage_offset) == ((4,), 2)


def test_what_a_file_in_bytes_names_is_named_by_the_whole(tmp_path: Path) -> None:
    inner = tmp_path / "inner.pth"
    for zipped in (False, True):
        torch.save(Payload(), inner, _use_new_zipfile_serialization=zipped)
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Boxed(inner.read_bytes())))
        assert "posix.system" in names(tmp_path / "a.pkl")
        # ... and a file in a file in a file
        (tmp_path / "b.pkl").write_bytes(pickle.dumps([Boxed((tmp_path / "a.pkl").read_bytes())]))
        assert "posix.system" in names(tmp_path / "b.pkl")


def test_a_file_in_bytes_that_breaks_is_a_finding_with_what_it_named(tmp_path: Path) -> None:
    broken = pickle.dumps(Payload())[:-1] + b"\xff"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Boxed(broken)))
    contents = examine(tmp_path / "a.pkl")
    assert "posix.system" in [str(name) for name in contents.globals]
    assert [finding.rule for finding in contents.findings] == ["inner-file"]
    assert isinstance(contents.root, Object)


def test_the_same_bytes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchkeep.formats as formats

    count = 0
    examine_open = formats.examine_open

    def counting(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return examine_open(*arguments)

    monkeypatch.setattr(formats, "examine_open", counting)
    data = pickle.dumps(torch.ones(2), 2)
    box = pickletools.optimize(data)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([Boxed(box), Boxed(box)]))
    describe(tmp_path / "a.pkl")
    assert count <= 4  # the file, the box, and the tensor's storage in it


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">f8"),
    "scalar": np.array(5, dtype=np.uint8),
    "empty": np.empty((0, 4)),
    "complex": np.array([1 + 2j]),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numbers_are_arrays(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(ARRAYS, protocol))
    root = describe(tmp_path / "a.pkl").root
    for name, array in ARRAYS.items():
        check(root[name], array, b"")


def check(mine: Any, theirs: np.ndarray, data: bytes) -> None:
    assert isinstance(mine, Array)
    assert (mine.dtype, mine.shape) == (theirs.dtype.name, theirs.shape)
    entry = mine.entry
    raw = entry.storage.data
    if raw is None:
        start = entry.storage.offset or 0
        raw = data[start : start + entry.storage.nbytes]
    order = ">" if entry.storage.byteorder == "big" else "<"
    live = np.frombuffer(raw, dtype=theirs.dtype.newbyteorder(order))
    strides = [step * theirs.itemsize for step in entry.stride]
    view = np.lib.stride_tricks.as_strided(live, entry.shape, strides)
    assert np.array_equal(view, theirs)


def test_joblibs_arrays_stand_behind_their_opcode(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "a.joblib"
    value = {**ARRAYS, "objects": np.array(["x", None], dtype=object), "end": "reached"}
    joblib.dump(value, path)
    contents = describe(path)
    assert contents.findings == ()
    assert contents.root["end"] == "reached"
    for name, array in ARRAYS.items():
        if array.ndim:  # joblib leaves arrays without a dimension to pickle
            check(contents.root[name], array, path.read_bytes())


def test_what_stands_behind_a_joblib_wrapper_of_objects_is_named(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump({"objects": np.array([Payload()], dtype=object)}, tmp_path / "a.joblib")
    assert "posix.system" in names(tmp_path / "a.joblib")


def test_joblibs_texts_dates_and_records_are_stepped_over(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    value = {
        "texts": np.array(["cat", "horse"]),
        "bytes": np.array([b"a", b"bcd"]),
        "dates": np.array(["2026-11-23"], dtype="M8[D]"),
        "records": np.zeros(3, dtype=[("a", "f4"), ("b", "i8")]),
        "end": "reached",
    }
    joblib.dump(value, tmp_path / "a.joblib")
    contents = describe(tmp_path / "a.joblib")
    assert contents.root["end"] == "reached"
    assert contents.findings == ()
