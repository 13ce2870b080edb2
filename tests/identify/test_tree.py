"""Walking a file's values: what stands where, what is the same, and where a walk ends."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torchkeep.contents import Contents, DictObject, Global, Object, Storage, TensorEntry
from torchkeep.errors import LimitReached
from torchkeep.identify.tree import Budget, NamedTensor, children, named_tensors, repr_key
from torchkeep.pickles.limits import Limits

STORAGE = Storage("0", 24, 0)
WEIGHT = TensorEntry("float32", (2, 3), (3, 1), STORAGE)


def tensors_in(root: Any, *, places: int = 1_000, depth: int = 50) -> tuple[NamedTensor, ...]:
    return named_tensors(root, Budget(places, depth))


def paths(root: Any) -> list[str]:
    return [item.path for item in tensors_in(root)]


def contents(root: Any, nbytes: int = 0) -> Contents:
    return Contents(Path("a.pth"), nbytes, "pickle", root)


# --- What is inside a value ----------------------------------------------------------------------


def test_children_of_a_mapping_have_its_keys_and_those_of_a_list_its_positions() -> None:
    assert list(children({"a": 1, 2: 3})) == [("a", 1), ("2", 3)]
    assert list(children(["x", ("y",)])) == [("0", "x"), ("1", ("y",))]
    assert list(children({7})) == [("0", 7)]
    assert list(children("text")) == list(children(WEIGHT)) == []


def test_children_of_an_object_are_all_that_it_would_be_made_of() -> None:
    made = Object(Global("m", "C"), (WEIGHT, "plain"), {"k": 1}, {"attribute": 2}, [3], {"pair": 4})
    assert list(children(made)) == [
        ("args.0", WEIGHT),
        ("k", 1),
        ("attribute", 2),
        ("0", 3),
        ("pair", 4),
    ]
    assert list(children(Object(Global("m", "C"), (), state=[5]))) == [("state", [5])]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (3, "3"),
        (None, "None"),
        (Global("torch", "float32"), "torch.float32"),
        (("a", 1), "<tuple of 2>"),
        (frozenset({1}), "<frozenset of 1>"),
        (Object(Global("m", "Key"), ()), "<m.Key>"),
    ],
)
def test_a_key_that_is_no_text_is_one_short_component_of_a_path(key: Any, shown: str) -> None:
    assert repr_key(key) == shown


# --- The tensors of a tree -----------------------------------------------------------------------


def test_a_tensor_is_named_by_the_way_to_it_wherever_it_stands() -> None:
    made = DictObject("collections.OrderedDict")
    made["weight"] = WEIGHT
    module = Object(Global("m", "C"), (), state={"_parameters": made})
    root = {"model": module, "list": [0, (WEIGHT, "x")], 5: {"a.b": WEIGHT}, "epoch": 3}
    assert paths(root) == ["model._parameters.weight", "list.1.0", "5.a.b"]
    assert paths(WEIGHT) == [""]
    assert paths({"epoch": 3}) == []


def test_a_shared_storage_and_the_same_elements_are_told_apart() -> None:
    row = replace(WEIGHT, shape=(3,), stride=(1,))
    other = replace(WEIGHT, storage=Storage("1", 24, 24))
    found = tensors_in({"a": WEIGHT, "row": row, "again": replace(WEIGHT), "other": other})
    assert [(item.alias_of, item.same_as) for item in found] == [
        (None, None),
        ("a", None),
        ("a", "a"),
        (None, None),
    ]


def test_a_tree_that_stands_in_two_places_is_listed_in_both() -> None:
    state = {"weight": WEIGHT}
    assert paths({"model": state, "ema": state}) == ["model.weight", "ema.weight"]


def test_a_value_that_contains_itself_is_walked_once() -> None:
    loop: dict[str, Any] = {"weight": WEIGHT}
    loop["self"] = loop
    assert paths(loop) == ["weight"]


def test_values_without_a_tensor_do_not_unfold() -> None:
    level: Any = [0]
    for _ in range(40):
        level = [level, level]
    assert tensors_in(level, places=200) == ()


# --- Where a walk ends ---------------------------------------------------------------------------


def test_tensors_that_unfold_into_more_places_than_there_are_bytes_reach_a_limit() -> None:
    level: Any = [WEIGHT]
    for _ in range(20):
        level = [level, level]
    with pytest.raises(LimitReached, match="far more places than it has bytes"):
        named_tensors(level, Budget.for_contents(contents(level), Limits()))


def test_the_budget_grows_with_the_file_up_to_the_limits() -> None:
    small, large = (Budget.for_contents(contents(None, size), Limits()) for size in (0, 1_000_000))
    assert large.left == small.left + 4 * 1_000_000
    assert "places" not in large.raisable
    bound = Budget.for_contents(contents(None), Limits(places=5, depth=7))
    assert (bound.left, bound.depth, bound.raisable) == (5, 7, {"places", "depth"})
    deep = Budget.for_contents(contents(None), Limits(depth=1 << 40))
    assert deep.depth == sys.getrecursionlimit() // 2
    assert "depth" not in deep.raisable


@pytest.mark.parametrize(
    ("limits", "root", "said"),
    [
        (Limits(places=5), [WEIGHT] * 10, "more places than the limit called places allows."),
        (Limits(depth=3), [[[WEIGHT]]], "nested deeper than the limit depth=3."),
    ],
)
def test_a_limit_that_binds_is_named_with_the_way_to_raise_it(
    limits: Limits, root: Any, said: str
) -> None:
    budget = Budget.for_contents(contents(root), limits)
    with pytest.raises(LimitReached) as caught:
        named_tensors(root, budget)
    name = next(iter(budget.raisable))
    assert f"{said} If you trust the file, allow more: limits=Limits({name}=...)" in str(
        caught.value
    )


def test_a_limit_allows_as_much_as_it_says() -> None:
    assert len(tensors_in([WEIGHT] * 4, places=5)) == 4
    assert len(tensors_in([[[WEIGHT]]], depth=4)) == 1


def test_pythons_own_stack_is_a_bound_that_no_limit_raises() -> None:
    with pytest.raises(LimitReached, match=r"nested deeper than the limit depth=2\.$"):
        tensors_in([[WEIGHT]], depth=2)


def test_long_paths_and_many_attributes_cost_as_much_as_several_places() -> None:
    budget = Budget(100, 50)
    budget.spend(0)
    assert budget.left == 99
    budget.spend(0, "x" * 250, num_attributes=7)
    assert budget.left == 99 - 1 - 2 - 7
