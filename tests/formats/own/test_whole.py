"""The text that makes a state dict a whole model: written and read, no torch needed."""

from __future__ import annotations

import base64
import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.contents import Array, Contents, DictObject, Global, Object, Storage, TensorEntry
from torchkeep.errors import DamagedFile
from torchkeep.formats.own.metadata import STRUCTURE
from torchkeep.formats.own.whole import Structure, read_structure, write_structure

WEIGHT = TensorEntry("float32", (2, 3), (3, 1), Storage("fc.weight", 24, 100))

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(Global, st.text(), st.text())
)
keys = st.text() | st.integers() | st.tuples(st.text(), st.integers())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.frozensets(keys)
        | st.sets(keys)
        | st.dictionaries(keys, inner)
    ),
    max_leaves=20,
)


def file_with(text: str) -> Contents:
    tensors = {"fc.weight": WEIGHT}
    return Contents(Path("model.safetensors"), 0, "safetensors", tensors, {STRUCTURE: text})


def reread(root: Object, **tables: dict[str, str]) -> Structure:
    structure = read_structure(file_with(write_structure(Structure(root, **tables))))
    assert structure is not None
    return structure


def holding(value: Any) -> Object:
    return Object(Global("a", "Net"), (), state={"x": value})


def typed(value: Any) -> Any:
    """Return a value spelled out with the types of all that is in it: True is not 1."""
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value), sorted(repr(typed(item)) for item in value)
    return type(value), repr(value)


@given(values)
def test_every_value_comes_back_equal_and_of_its_type(value: Any):
    found = reread(holding(value)).root.state["x"]
    assert typed(found) == typed(value)


def test_an_object_comes_back_with_all_of_its_parts():
    inner = Object(Global("a", "b"), (1, "x"), {"k": 2.5}, ("s", {}), [1], {"key": None})
    table = DictObject("collections.OrderedDict")
    table["a"] = 1
    table.attributes["_metadata"] = {"version": 1}
    found = reread(holding([inner, table])).root.state["x"]
    made, mapping = found
    assert (str(made.callee), made.args, made.kwargs) == ("a.b", (1, "x"), {"k": 2.5})
    assert (made.state, made.items, made.pairs) == (("s", {}), [1], {"key": None})
    assert (mapping.class_path, dict(mapping)) == ("collections.OrderedDict", {"a": 1})
    assert mapping.attributes == {"_metadata": {"version": 1}}


def test_what_is_shared_stays_shared_and_what_holds_itself_does_so_again():
    shared = [1]
    loop = holding(None)
    loop.state = {"self": loop, "one": shared, "two": (shared,)}
    found = reread(loop).root
    assert found.state["self"] is found
    assert found.state["one"] is found.state["two"][0]


def test_a_tensor_of_the_state_dict_is_told_by_its_name_with_its_flags():
    entry = TensorEntry("float32", (2, 3), (3, 1), Storage("fc.weight", 0, None), 0, True, True)
    found = reread(holding(entry)).root.state["x"]
    assert found.storage is WEIGHT.storage
    assert (found.is_parameter, found.requires_grad) == (True, True)


def test_a_tensor_outside_of_the_state_dict_is_in_the_text():
    data = bytes(range(8))
    entry = TensorEntry("int16", (2, 2), (2, 1), Storage("", 8, None, data=data))
    array = Array("int16", (4,), False, Storage("", 8, None, data=data))
    found, again = reread(holding([entry, array])).root.state["x"]
    assert (found.dtype, found.shape, found.stride) == ("int16", (2, 2), (2, 1))
    assert found.storage.data == data
    assert isinstance(again, Array)
    assert (again.dtype, again.shape, again.storage.data) == ("int16", (4,), data)


def test_numbers_that_json_has_not_are_kept():
    found = reread(holding([math.nan, math.inf, -math.inf, -0.0])).root.state["x"]
    assert math.isnan(found[0])
    assert [repr(item) for item in found[1:]] == ["inf", "-inf", "-0.0"]


def test_sources_and_versions_come_back():
    found = reread(holding(1), sources={"a.Net": "class Net: ..."}, libraries={"torch": "2.14"})
    assert found.sources == {"a.Net": "class Net: ..."}
    assert found.libraries == {"torch": "2.14"}


def test_a_file_without_a_structure_has_none():
    assert read_structure(Contents(Path("x"), 0, "safetensors", {})) is None


def test_only_inert_values_can_be_written():
    with pytest.raises(TypeError, match="object is no inert value"):
        write_structure(Structure(holding(object())))


def text_of(*nodes: Any, version: Any = 1, root: Any = None, sources: Any = None) -> str:
    table = {"version": version, "root": [0] if root is None else root, "nodes": nodes}
    return json.dumps(table | {"sources": sources or {}, "libraries": {}})


def object_of(value: Any) -> dict[str, Any]:
    return {"object": [1], "args": [value]}


NAME = {"global": ["a", "b"]}
FLAGS = {"parameter": False, "requires_grad": False}


def data_of(data: bytes, shape: Any, dtype: str = "uint8") -> dict[str, Any]:
    packed = base64.b64encode(zlib.compress(data)).decode()
    return {"data": packed, "dtype": dtype, "shape": shape, **FLAGS}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is no valid JSON"),
        (text_of(version=2), "its version is 2, and 1 is known"),
        (text_of(root=3), "its root is no object"),
        (text_of(root=[7]), "list index out of range is missing"),
        (text_of(root=[-1]), "a place is no number"),
        (text_of(root={"a": 1}), "a value is an object"),
        (text_of({"other": 1}), "a node is of no known kind"),
        (text_of({"global": ["a", 1]}), "a text is none"),
        (text_of(object_of([2]), NAME, {"tensor": "no", **FLAGS}), "'no' is missing"),
        (text_of(object_of([2]), NAME, {"tuple": [[2]]}), "a tuple or a set contains itself"),
        (text_of(object_of([2]), NAME, {"set": [[3]]}, {"list": []}), "uses a list as a key"),
        (text_of(object_of([2]), NAME, {"dict": [[[3], 1]]}, {"dict": []}), "a dict as a key"),
        (text_of(object_of(1), NAME, sources={"a": 1}), "a text is none"),
        (text_of(object_of([2]), NAME, data_of(b"abc", [2])), "a tensor of 2 bytes has others"),
        (text_of(object_of([2]), NAME, data_of(b"a", [2])), "a tensor of 2 bytes has others"),
        (text_of(object_of([2]), NAME, data_of(b"", [-1])), "a size is no number"),
        (
            text_of(object_of([2]), NAME, data_of(b"", [1 << 40])),
            "more than 268,435,456 bytes",
        ),
        (text_of(object_of([2]), NAME, data_of(b"", [0], "quint4x2")), "no tensor of dtype quint4"),
        (text_of(object_of([2]), NAME, {"bytes": "?"}), ""),
    ],
)
def test_a_broken_structure_is_told_of(text: str, why: str):
    with pytest.raises(DamagedFile) as caught:
        read_structure(file_with(text))
    problem = str(caught.value)
    assert problem.startswith("model.safetensors: the structure of its model can't be read (")
    assert why in problem
    assert problem.endswith("). Copy or download the file again.")


def test_a_bomb_is_not_unpacked():
    bomb = data_of(bytes(50_000_000), [10])
    with pytest.raises(DamagedFile, match="a tensor of 10 bytes has others"):
        read_structure(file_with(text_of(object_of([2]), NAME, bomb)))
