"""writing/pickling.py: inert values to bytes and back, by our own reader, Python and PyTorch."""

from __future__ import annotations

import io
import pickle
import struct
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchkeep.contents import Array, DictObject, Files, Global, Object, Storage, TensorEntry, Value
from torchkeep.errors import SaveRefused
from torchkeep.files import InputFile
from torchkeep.formats import describe
from torchkeep.formats.torch.unpickling import run_torch_pickle
from torchkeep.pickles.limits import DEFAULT_LIMITS
from torchkeep.pickles.source import ByteSource
from torchkeep.writing.payload import Payload, of_bytes, of_file
from torchkeep.writing.pickling import Pickling
from torchkeep.writing.strided import payload_of_elements
from torchkeep.writing.torch_zip import write_torch_zip


def pickled(root: Value) -> bytes:
    return Pickling(root).finished({})


def back(root: Value) -> Value:
    return run_torch_pickle(ByteSource.of_bytes(pickled(root)), limits=DEFAULT_LIMITS).root


# --- Equality of inert trees -------------------------------------------------------------------


class Comparison:
    """Whether two trees are the same, with the same values at several places."""

    def __init__(self) -> None:
        self.partners: dict[int, int] = {}

    def same(self, one: Value, two: Value) -> bool:
        if type(one) is not type(two):
            return False
        if isinstance(one, float):
            return struct.pack("d", one) == struct.pack("d", two)
        if isinstance(one, complex):
            return self.same(one.real, two.real) and self.same(one.imag, two.imag)
        if isinstance(one, set | frozenset):
            return one == two
        if not isinstance(one, list | tuple | dict | Object | TensorEntry) or one == ():
            return bool(one == two)
        if id(one) in self.partners:
            return self.partners[id(one)] == id(two)
        self.partners[id(one)] = id(two)
        return self.inside(one, two)

    def inside(self, one: Any, two: Any) -> bool:
        if isinstance(one, Object):
            names = ("callee", "args", "state", "items", "pairs")
            return all(self.same(getattr(one, name), getattr(two, name)) for name in names)
        if isinstance(one, TensorEntry):
            return facts(one) == facts(two) and self.partner(one.storage, two.storage)
        if isinstance(one, DictObject):
            if (one.class_path, len(one.attributes)) != (two.class_path, len(two.attributes)):
                return False
            if one.attributes and not self.same(one.attributes, two.attributes):
                return False
        if isinstance(one, dict):
            return self.keys(one) == self.keys(two) and all(
                map(self.same, one.values(), two.values())
            )
        return len(one) == len(two) and all(map(self.same, one, two))

    def partner(self, one: object, two: object) -> bool:
        return self.partners.setdefault(id(one), id(two)) == id(two)

    @staticmethod
    def keys(table: dict[Value, Value]) -> list[tuple[type, Value]]:
        return [(type(key), key) for key in table]


def facts(entry: TensorEntry) -> tuple[object, ...]:
    flags = (entry.requires_grad, entry.is_parameter, entry.is_conj, entry.is_neg)
    return (entry.dtype, entry.shape, entry.stride if entry.numel else None, flags)


TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)
KEYS = st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.tuples(TEXTS, st.integers()))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.complex_numbers(),
    TEXTS,
    st.binary(max_size=300),
    st.binary(max_size=6).map(bytearray),
    st.sets(KEYS, max_size=3),
    st.frozensets(KEYS, max_size=3),
    st.sampled_from([Global("torch", "float32"), Global("os", "system"), Global("a.b", "C.d")]),
)
_STORAGES = [Storage("x", 64, 0), Storage("y", 40, 0, "cuda:1")]
_BYTES = {id(storage): bytes(range(storage.nbytes)) for storage in _STORAGES}


def payload_of(storage: Storage) -> Payload:
    return of_bytes(_BYTES[id(storage)])


@st.composite
def entries(draw: st.DrawFn) -> TensorEntry:
    index = draw(st.integers(0, 1))
    dtype = ("float32", "uint16")[index]  # a storage has one dtype
    offset = draw(st.integers(0, 3))
    shape = tuple(draw(st.lists(st.integers(0, 2), max_size=3)))
    stride = tuple(draw(st.integers(0, 3)) for _ in shape)
    flags = draw(st.booleans()), draw(st.booleans())
    is_neg = draw(st.booleans()) and index == 0
    return TensorEntry(dtype, shape, stride, _STORAGES[index], offset, *flags, is_neg=is_neg)


@st.composite
def trees(draw: st.DrawFn, leaves: st.SearchStrategy[Value] = LEAVES) -> Value:
    """Return a tree in which a value may stand at several places."""
    made: list[Value] = []
    for _ in range(draw(st.integers(1, 12))):
        value = leaves if not made else st.one_of(leaves, st.sampled_from(made))
        items = draw(st.lists(value, max_size=4))
        table = {draw(KEYS): item for item in items}
        kind = draw(st.sampled_from(["list", "tuple", "dict", "ordered", "counter", "object"]))
        if kind in ("list", "tuple"):
            made.append(items if kind == "list" else tuple(items))
        elif kind == "dict":
            made.append(table)
        elif kind == "object":
            state = draw(st.sampled_from([None, {"epoch": 3}, *made]))
            made.append(Object(Global("a", "B"), tuple(items), {}, state, [*items], table))
        else:
            mapping = DictObject(f"collections.{'OrderedDict' if kind == 'ordered' else 'Counter'}")
            mapping.update(table)
            mapping.attributes.update({"_metadata": draw(value)} if kind == "ordered" else {})
            made.append(mapping)
    return made[-1]


# --- There and back ----------------------------------------------------------------------------


@given(trees())
@settings(max_examples=300, deadline=None)
def test_our_reader_gives_the_tree_back_with_what_stands_in_it_twice(root: Value) -> None:
    assert Comparison().same(root, back(root))


@given(trees(st.one_of(LEAVES, entries())))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_tensors_come_back_with_their_elements_and_what_they_share(
    tmp_path_factory: pytest.TempPathFactory, root: Value
) -> None:
    path = tmp_path_factory.mktemp("tree") / "file.pth"
    report = write_torch_zip({"root": root}, payload_of, path, durable=False)
    contents = describe(path)
    assert Comparison().same(root, contents.root["root"])
    pickling = Pickling({"root": root})
    assert pickling.tensors.keys() == report.digests.keys()
    found = Pickling(contents.root).tensors
    with InputFile(path) as file:
        for name, entry in pickling.tensors.items():
            one, two = entry, found[name]
            assert (elements(one, payload_of(one.storage))) == elements(
                two, of_file(file, two.storage.offset or 0, two.storage.nbytes)
            )


def elements(entry: TensorEntry, storage: Payload) -> bytes:
    return bytes(payload_of_elements(entry, storage).joined(0, entry.nbytes))


PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS,
        st.binary(max_size=9), st.complex_numbers(allow_nan=False), st.sets(KEYS, max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(inner, max_size=5).map(tuple),
    ),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
@settings(max_examples=200, deadline=None)
def test_python_and_weights_only_read_the_same_plain_values(value: Any) -> None:
    data = pickled(value)
    assert Comparison().same(value, pickle.loads(data))
    found = torch._weights_only_unpickler.load(io.BytesIO(data))
    assert found == value


def test_mappings_of_collections_are_made_again_by_python() -> None:
    ordered = DictObject("collections.OrderedDict")
    ordered.update({"b": 1, "a": 2})
    ordered.attributes["_metadata"] = {"": {"version": 2}}
    counter = DictObject("collections.Counter")
    counter.update({3: 2, "x": 1})
    found = pickle.loads(pickled([ordered, counter]))
    assert found == [OrderedDict([("b", 1), ("a", 2)]), Counter({3: 2, "x": 1})]
    assert list(map(type, found)) == [OrderedDict, Counter]
    assert found[0]._metadata == {"": {"version": 2}}


def test_an_instance_is_made_without_its_init() -> None:
    linear = Object(Global("torch.nn.modules.linear", "Linear"), (), state={"training": True})
    found = pickle.loads(pickled(linear))
    assert type(found) is torch.nn.Linear
    assert found.training is True


def test_names_of_python_2_are_written_for_what_had_another_one() -> None:
    assert b"c__builtin__\nset\n" in pickled({1})
    assert b"ccopy_reg\n_reconstructor\n" in pickled(Global("copyreg", "_reconstructor"))
    assert back(Global("copyreg", "_reconstructor")) == Global("copyreg", "_reconstructor")


def test_texts_and_names_stand_in_the_stream_once() -> None:
    rows = [{"exp_avg": 1.5, "kind": Global("torch", "float32")} for _ in range(1000)]
    data = pickled(rows)
    assert data.count(b"exp_avg") == data.count(b"float32") == 1


# --- Cycles ------------------------------------------------------------------------------------


def test_cycles_through_lists_dicts_and_states_are_kept() -> None:
    tree: list[Value] = [1]
    table: dict[str, Value] = {"tree": tree}
    owner = Object(Global("a", "B"), ())
    owner.state = {"self": owner, "pair": (tree, table)}
    tree += [table, owner, tree]
    found = back(tree)
    assert found[3] is found
    assert found[1]["tree"] is found
    assert found[2].state["self"] is found[2]
    assert found[2].state["pair"][1] is found[1]


@pytest.mark.parametrize("kind", ["tuple", "argument"])
def test_cycles_that_no_pickle_of_this_kind_has_are_refused(kind: str) -> None:
    inner: list[Value] = []
    root = (inner,) if kind == "tuple" else Object(Global("a", "B"), (inner,))
    inner.append(root)
    with pytest.raises(SaveRefused, match=r"contains itself, which can't be stored\. Break"):
        pickled({"x": root})


def test_a_value_that_unfolds_without_end_takes_little_room() -> None:
    value: Value = ()
    for _ in range(200):
        value = (value, value)
    assert len(pickled(value)) < 2000


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Array("float32", (1,), False, Storage("", 4, 0)), r"'a\.0' is a NumPy array, .* its elem"),
        (Files(), r"'a\.0' is a folder or an archive\. Save one of its files\."),
        (object(), r"'a\.0' is of type builtins\.object, which is no inert value"),
        (
            Object(Global("a", "B"), (), {"x": 1}),
            r"'a\.0' is an object that is made with named arguments",
        ),
        (
            TensorEntry("float32", (3,), (), Storage("", 0, None), layout="jagged"),
            r"tensor 'a\.0' is a jagged, which can't be stored as it is\. Load it, and sa",
        ),
        (Global("a\nb", "c"), r"the name 'a\\nb\.c' can't be stored"),
    ],
)
def test_what_has_no_place_is_refused_by_its_path(value: Value, message: str) -> None:
    with pytest.raises(SaveRefused, match=message):
        pickled({"a": [value]})


def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path: Path) -> None:
    entry = TensorEntry("float32", (5,), (1,), Storage("x", 16, 0))
    with pytest.raises(SaveRefused, match="tensor 'w' reaches to byte 20 of a storage of 16"):
        write_torch_zip({"w": entry}, lambda _: of_bytes(bytes(16)), tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []
