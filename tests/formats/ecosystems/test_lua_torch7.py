"""What a file of Torch for Lua holds, and the code in it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from formats.building_foreign import Lua
from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, LimitReached, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.ecosystems.lua_torch7 import sniff
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits


def look(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Contents:
    return examine_open(MemoryFile(data, Path("model.t7")), limits)


def checkpoint(*, digits: bool = False) -> bytes:
    def weight(lua: Lua) -> None:
        lua.tensor((2, 3), [0, 1, 2, 3, 4, 5])

    def model(lua: Lua) -> None:
        lua.instance("nn.Sequential").add({"modules": {1: layer}, "train": True})

    def layer(lua: Lua) -> None:
        lua.instance("nn.Linear").add({"weight": weight, "bias": None})

    return Lua(digits=digits).add({"epoch": 3, "lr": 0.5, "name": "run", "model": model}).data


@pytest.mark.parametrize("digits", [False, True])
def test_tensors_are_listed_by_the_keys_that_lead_to_them(digits: bool) -> None:
    data = checkpoint(digits=digits)
    contents = look(data)
    assert contents.container == "lua-torch7"
    assert contents.kind == ("file of Torch for Lua: table, 1 nn.Sequential, 1 nn.Linear, 1 tensor")
    assert contents.metadata == {"epoch": "3", "lr": "0.5", "name": "run"}
    entry = contents.root["model.modules.1.weight"]
    assert (entry.dtype, entry.shape, entry.stride) == ("float32", (2, 3), (3, 1))
    if digits:
        assert entry.storage.offset is None
    else:
        start = entry.storage.offset
        assert struct.unpack("<6f", data[start : start + 24]) == (0, 1, 2, 3, 4, 5)
    assert isinstance(contents.problem, UnsupportedContent)
    assert contents.findings == ()


def test_one_object_of_a_class_is_told() -> None:
    assert look(Lua().instance("nn.Linear").add({}).data).kind == (
        "file of Torch for Lua: nn.Linear, 1 object, 0 tensors"
    )
    assert look(Lua().tensor((2,), [1, 2]).data).kind == (
        "file of Torch for Lua: torch.FloatTensor, 1 tensor"
    )


def test_a_class_without_a_version_is_read() -> None:
    data = Lua().instance("nn.Linear", version=False).add({"w": 1}).data
    assert look(data).kind.startswith("file of Torch for Lua: nn.Linear")


def test_a_view_of_another_tensors_storage_is_read() -> None:
    lua = Lua().new(3)
    assert lua == 1
    built = Lua()
    built.new(3)
    built.numbers("i", 2).add("a").tensor((4,), [1, 2, 3, 4])
    built.add("b").instance("torch.FloatTensor").numbers("i", 1)
    built.numbers("q", 2).numbers("q", 1).numbers("q", 3).numbers("i", 4).numbers("i", 3)
    root = look(built.data).root
    assert root["b"].storage is root["a"].storage
    assert (root["b"].shape, root["b"].storage_offset) == ((2,), 2)


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("kind", [6, 7, 8])
def test_functions_need_trust(kind: int, digits: bool) -> None:
    def function(lua: Lua) -> None:
        if kind == 6:
            lua.numbers("i", 6)
        else:
            lua.new(kind)
        lua.raw(b"\x1bLJ\x01code\n").add({})

    contents = look(Lua(digits=digits).add({"epoch": 1, "hook": function, "z": 2}).data)
    assert [(f.rule, f.severity, f.place) for f in contents.findings] == [
        ("lua-function", "needs-trust", "hook")
    ]
    assert contents.metadata == {"epoch": "1", "z": "2"}
    alone = Lua(digits=digits)
    function(alone)
    assert look(alone.data).kind == "file of Torch for Lua: function, 0 tensors, 1 function"


def test_a_function_is_found_before_the_file_breaks() -> None:
    contents = look(Lua().add({"hook": b"\x1bLJ", "w": "x" * 100}).data[:-50])
    assert isinstance(contents.problem, DamagedFile)
    assert [finding.rule for finding in contents.findings] == ["lua-function"]


def test_tables_in_circles_end() -> None:
    lua = Lua()
    lua.new(3)
    lua.numbers("i", 1).add("self").numbers("i", 3).numbers("i", 1)
    assert look(lua.data).kind == "file of Torch for Lua: table, 0 tensors"


def test_tds_tables_are_read() -> None:
    lua = Lua().instance("tds.Hash").numbers("i", 1).add(None).add("w").tensor((1,), [1])
    assert list(look(lua.data).root) == ["w"]
    lua = Lua().instance("tds.Vec").numbers("i", 1).add(None).tensor((1,), [1])
    assert len(look(lua.data).root) == 1


def test_deep_objects_take_no_stack() -> None:
    depth = 5_000
    data = b"".join(struct.pack("<iiiid", 3, n, 1, 1, 1.0) for n in range(1, depth))
    assert look(data + struct.pack("<i", 0)).kind == "file of Torch for Lua: table, 0 tensors"
    deeper = b"".join(struct.pack("<iiiid", 3, n, 1, 1, 1.0) for n in range(1, 30_000))
    contents = look(deeper + struct.pack("<i", 0))
    assert isinstance(contents.problem, LimitReached)
    assert "objects are nested more than 20,000 deep" in str(contents.problem)


def test_the_number_of_objects_is_limited() -> None:
    contents = look(checkpoint(), Limits(records=2))
    assert "records=2" in str(contents.problem)


def test_bytes_behind_the_object_are_noticed() -> None:
    findings = look(checkpoint() + b"more").findings
    assert [(f.rule, f.severity) for f in findings] == [("trailing-bytes", "ambiguous")]


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, storage: Any) -> bytes:
    lua = Lua().instance("torch.FloatTensor").numbers("i", len(shape))
    lua.numbers("q", *shape).numbers("q", *stride).numbers("q", offset)
    storage(lua)
    return lua.data


def floats(lua: Lua) -> None:
    lua.instance("torch.FloatStorage").numbers("q", 2).numbers("f", 1, 2)


def doubles(lua: Lua) -> None:
    lua.instance("torch.DoubleStorage").numbers("q", 2).numbers("d", 1, 2)


REFUSED = [
    (tensor((3,), (1,), 1, floats), "reaches past its storage"),
    (tensor((2,), (1,), 2, floats), "reaches past its storage"),
    (tensor((2,), (1,), 1, lambda lua: lua.add(None)), "reaches past its storage"),
    (tensor((2,), (1,), 0, floats), "does not fit its storage"),
    (tensor((2,), (-1,), 2, floats), "does not fit its storage"),
    (tensor((2,), (1,), 1, doubles), "does not fit its storage"),
    (tensor((-2,), (1,), 1, floats), "negative size"),
    (tensor((1 << 40, 1 << 40), (0, 0), 1, floats), "more elements than can be"),
    (tensor((1,) * 65, (1,) * 65, 1, floats), "65 dimensions"),
    (Lua().instance("torch.FloatStorage").numbers("q", -1).data, "a storage has -1 elements"),
    (Lua().add({"a": lambda lua: lua.numbers("i", 9)}).data, "no object stands before byte"),
    (checkpoint()[:-5], "bytes are needed at byte"),
    (checkpoint(digits=True).replace(b"\n0.5\n", b"\n0,5\n"), "'0,5' stands where a number"),
    (checkpoint(digits=True).replace(b"2 3\n", b"2 x\n"), "'x' stands where a number"),
]


@pytest.mark.parametrize(("data", "problem"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_objects_that_contradict_themselves_are_refused(data: bytes, problem: str) -> None:
    contents = look(data)
    assert contents.container == "lua-torch7"
    assert isinstance(contents.problem, DamagedFile)
    assert problem in str(contents.problem)


@pytest.mark.parametrize(
    "data",
    [
        b"3\n1\n4\n1\n5\n9\n2\n6\n",
        b"4\n1\n3\n2\n",
        struct.pack("<10i", *range(3, 13)),
        struct.pack("<10i", 3, 1, 4, 1, 5, 9, 2, 6, 5, 3),
        struct.pack("<4i", 4, 1, 3, 0) + b"V 1",
        bytes(100),
    ],
)
def test_lists_of_small_numbers_are_not_taken_for_objects(data: bytes) -> None:
    assert not sniff(data, len(data))
