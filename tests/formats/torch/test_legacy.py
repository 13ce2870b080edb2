"""The old stream: its odd corners, and what is said when it is not whole."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.building import (
    MAGIC,
    Call,
    StorageId,
    legacy_file,
    legacy_tensor,
    old_tensor,
    rules,
    storage,
)
from torchkeep.contents import Contents, Global, Object
from torchkeep.errors import DamagedFile, FileProblem
from torchkeep.formats import describe

DATA = {"1": (4, b"0123456789abcdef")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def written(path: Path, tree: Any = None, storages: Any = None, **options: Any) -> Contents:
    legacy_file(path, tree or legacy_tensor(), DATA if storages is None else storages, **options)
    return describe(path)


def test_the_stream_that_the_other_tests_spoil_is_clean(path: Path) -> None:
    contents = written(path)
    assert contents.findings == ()
    entry = contents.root["w"]
    assert path.read_bytes()[entry.storage.offset :] == DATA["1"][1]
    assert torch.load(path, weights_only=True)["w"].shape == entry.shape


def test_counts_may_be_in_the_order_of_a_big_endian_machine(path: Path) -> None:
    contents = written(path, machine="big", count_order="big")
    assert contents.findings == ()
    assert contents.root["w"].storage.nbytes == 16
    assert contents.root["w"].storage.byteorder == "little"
    assert contents.metadata["machine"] == "big endian"


def test_the_source_of_a_class_is_kept_as_text(path: Path) -> None:
    source = "class Linear(Module):\n    pass\n"
    cls = StorageId(("module", torch.nn.Linear, "linear.py", source))
    contents = written(path, [cls, cls], {})
    assert contents.sources == {"torch.nn.modules.linear.Linear": source}
    assert contents.root == [Global("torch.nn.modules.linear", "Linear")] * 2


def test_a_class_without_source_is_no_source(path: Path) -> None:
    contents = written(path, [StorageId(("module", torch.nn.Linear, None, None))], {})
    assert contents.sources == {}
    assert contents.findings == ()


def test_a_count_that_differs_from_the_pickle_is_found(path: Path) -> None:
    contents = written(path, legacy_tensor(4, declared=5))
    assert rules(contents) == [("storage-size", "damaged")]
    assert contents.findings[0].text == "the pickle says 5 elements, the stream 4"


def test_a_tensor_that_the_stream_is_too_short_for_is_no_tensor(path: Path) -> None:
    contents = written(path, legacy_tensor(6))
    assert ("malformed-call", "damaged") in rules(contents)
    assert isinstance(contents.root["w"], Object)


def test_a_storage_that_is_used_and_not_listed_is_missing(path: Path) -> None:
    """PyTorch leaves its tensor's memory as it is: random."""
    contents = written(path, None, {}, keys=[])
    assert ("missing-storage", "damaged") in rules(contents)
    assert isinstance(contents.root["w"], Object)


def test_bytes_behind_the_end_are_ambiguous(path: Path) -> None:
    assert rules(written(path, tail=b"more")) == [("trailing-bytes", "ambiguous")]


def test_an_odd_persistent_id_is_ambiguous(path: Path) -> None:
    assert rules(written(path, [StorageId("what")], {})) == [("persistent-id", "ambiguous")]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"keys": ["2"]}, "lists a storage that is never used"),
        ({"keys": ["1", "1"]}, "lists a storage that is never used, or lists it twice"),
        ({"keys": [["1"]]}, "lists a storage that is never used"),
        ({"protocol": 1002}, "protocol is 1002; only 1001 is known"),
        ({"protocol": "1001"}, "protocol is no number; only 1001 is known"),
    ],
)
def test_a_stream_that_contradicts_itself_is_damaged(
    path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DamagedFile, match=problem):
        written(path, **options)


def test_a_part_that_reaches_over_its_storage_is_damage(path: Path) -> None:
    part = storage("FloatStorage", "1", 4, view=("2", 2, 3))
    with pytest.raises(DamagedFile, match="elements 2 to 5 of storage '1', which has 4"):
        written(path, {"w": old_tensor(part, 0, (1,), (1,))})


def test_a_tensor_that_reaches_over_its_part_is_no_tensor(path: Path) -> None:
    part = storage("FloatStorage", "1", 4, view=("2", 1, 2))
    contents = written(path, {"w": old_tensor(part, 0, (3,), (1,))})
    assert rules(contents) == [("malformed-call", "damaged")]


def test_a_broken_state_of_an_old_tensor_is_damage(path: Path) -> None:
    where = storage("FloatStorage", "1", 4)
    tree = Call(torch.FloatTensor, (), (where, 0, (9,), (1,)))
    with pytest.raises(DamagedFile, match="broken state on a tensor"):
        written(path, tree)


def test_a_magic_number_that_is_made_by_a_call_is_no_stream(path: Path) -> None:
    magic = pickle.dumps(Call(int, (str(MAGIC),)), 2)
    path.write_bytes(magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2))
    contents = describe(path)
    assert contents.container == "pickle"
    assert ("trailing-bytes", "ambiguous") in rules(contents)


@pytest.mark.parametrize("protocol", range(6))
def test_the_magic_number_is_known_in_every_protocol(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(MAGIC, protocol))
    with pytest.raises(FileProblem, match="the pickle is truncated"):
        describe(path)
