"""comparing/leaves.py: every value of a tree has one path, and no tree leads the walk astray."""

from __future__ import annotations

import pytest

from torchkeep.comparing.leaves import leaves
from torchkeep.contents import Array, Global, Object, Storage, TensorEntry
from torchkeep.errors import LimitReached
from torchkeep.identify.tree import Budget

STORAGE = Storage("0", 8, None, data=bytes(8))
TENSOR = TensorEntry("float32", (2,), (1,), STORAGE)


def found(root: object, places: int = 1000) -> dict[str, object]:
    return leaves(root, Budget(places, 100))


def test_values_are_found_by_path() -> None:
    tree = {"a": [1, {"b": TENSOR}], 3: "x", "empty": {}, "none": None, "t": ()}
    assert found(tree) == {
        "a.0": 1,
        "a.1.b": TENSOR,
        "3": "x",
        "empty": {},
        "none": None,
        "t": (),
    }
    assert found(5) == {"": 5}
    assert leaves([1], Budget(9, 9), start="x") == {"x.0": 1}


def test_two_values_at_one_path_are_both_found() -> None:
    assert found({"a": {"b": 1}, "a.b": 2, "a.b~": 3}) == {"a.b": 1, "a.b~": 2, "a.b~~": 3}


def test_a_set_has_the_order_of_its_texts() -> None:
    assert (
        found({"b", "a", "c"}) == found({"c", "b", "a"}) == {"0": "'a'"[1:-1], "1": "b", "2": "c"}
    )


def test_of_an_object_everything_is_a_leaf_its_class_too() -> None:
    made = Object(
        Global("m", "C"), (1, b"x"), kwargs={"k": 2}, state={"s": 3}, items=[4], pairs={"p": 5}
    )
    assert found(made) == {
        "<class>": Global("m", "C"),
        "args.0": 1,
        "args.1": b"x",
        "k": 2,
        "s": 3,
        "0": 4,
        "p": 5,
    }
    assert found(Object(Global("m", "C"), (), state=7))["state"] == 7


def test_an_array_is_the_tensor_of_its_elements() -> None:
    assert found([Array("float32", (2,), False, STORAGE)]) == {"0": TENSOR}


def test_a_tensor_of_others_is_there_as_these() -> None:
    part = TensorEntry("int64", (1,), (1,), STORAGE)
    empty = Storage("", 0, None)
    sparse = TensorEntry(
        "float32", (9,), (1,), empty, layout="sparse_coo", parts=(("indices", part),)
    )
    assert found({"w": sparse}) == {"w.<layout>": "sparse_coo [9]", "w.indices": part}
    wrapper = TensorEntry("float32", (2,), (1,), empty, class_path="a.D", parts=(("it", TENSOR),))
    assert found({"w": wrapper}) == {"w.a.D": TENSOR}
    numbers = TensorEntry("qint8", (2,), (1,), STORAGE)
    quantized = TensorEntry(
        "qint8", (2,), (1,), STORAGE, quantizer=("per_tensor_affine", 0.5, 1), parts=(("s", part),)
    )
    assert found({"w": quantized}) == {
        "w.<integers>": numbers,
        "w.<quantizer>.0": "per_tensor_affine",
        "w.<quantizer>.1": 0.5,
        "w.<quantizer>.2": 1,
        "w.s": part,
    }


def test_what_contains_itself_ends_there() -> None:
    tree: dict[str, object] = {"a": 1}
    tree["self"] = [tree]
    assert found(tree) == {"a": 1, "self.0": "(a value around this one)"}


def test_what_is_skipped_is_left_out_with_all_in_it() -> None:
    inner = {"b": 1}
    assert leaves({"a": inner, "c": 2}, Budget(9, 9), skipped={id(inner)}) == {"c": 2}


def test_a_tree_that_unfolds_without_end_is_refused() -> None:
    tree: list[object] = [1]
    for _ in range(60):
        tree = [tree, tree]
    with pytest.raises(LimitReached, match="unfold into far more places than it has bytes"):
        found(tree, 10_000)
