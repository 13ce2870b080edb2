"""Wrappers are taken off the keys of a state dict where they stand, and nowhere else."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchkeep.matching.keys import WRAPPERS, strip_wrappers, wrappers_in


def bare(*keys: str) -> list[str]:
    return list(strip_wrappers(keys).values())


def test_dataparallel_is_stripped_once_or_twice() -> None:
    assert bare("module.fc.weight", "module.fc.bias") == ["fc.weight", "fc.bias"]
    assert bare("module.module.fc.weight", "module.module.fc.bias") == ["fc.weight", "fc.bias"]


def test_a_child_that_is_called_module_stays() -> None:
    keys = ["module.weight", "fc.weight"]
    assert bare(*keys) == keys
    assert bare("enc.module.weight", "enc.bias") == ["enc.module.weight", "enc.bias"]
    assert bare("module.module.weight", "module.fc.weight") == ["module.weight", "fc.weight"]


def test_a_key_that_would_vanish_stays() -> None:
    assert bare("module") == ["module"]
    assert bare("module.module") == ["module"]


def test_private_wrappers_are_stripped_wherever_they_stand() -> None:
    assert bare("_orig_mod.fc.weight") == ["fc.weight"]
    assert bare("blocks.0._checkpoint_wrapped_module.fc.weight") == ["blocks.0.fc.weight"]
    assert bare("_fsdp_wrapped_module.a._fsdp_wrapped_module.b") == ["a.b"]
    assert bare("module._orig_mod.a", "module._orig_mod.b") == ["a", "b"]
    assert bare("_orig_mod.module.a", "_orig_mod.module.b") == ["a", "b"]


def test_a_key_that_only_looks_like_a_wrapper_stays() -> None:
    keys = ["modules.weight", "module_list.weight", "my_orig_mod.bias"]
    assert bare(*keys) == keys


@pytest.mark.parametrize("keys", [["_orig_mod.a", "a"], ["_orig_mod"]])
def test_stripping_never_makes_two_keys_one_or_a_key_empty(keys: list[str]) -> None:
    assert bare(*keys) == keys
    assert wrappers_in(keys) == ()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a.b"], ()),
        (["module.a", "module.b"], ("module",)),
        (["module.module.a"], ("module",)),
        (["module._orig_mod.a"], ("module", "_orig_mod")),
        (["_orig_mod.module.a"], ("_orig_mod", "module")),
        (["a._checkpoint_wrapped_module.b"], ("_checkpoint_wrapped_module",)),
        (["module.weight", "fc.weight"], ()),
        (["a._orig_mod.module.b"], ("_orig_mod",)),
        ([], ()),
    ],
)
def test_the_wrappers_are_named_in_the_order_of_the_keys(
    keys: list[str], expected: tuple[str, ...]
) -> None:
    assert wrappers_in(keys) == expected


parts = st.lists(st.sampled_from([*WRAPPERS, "a", "b", "module"]), max_size=4)
names = st.sampled_from(["a", "b", "module", "_orig_mod"])
keys_of_tensors = st.tuples(parts, names).map(lambda pair: ".".join([*pair[0], pair[1]]))
key_sets = st.lists(keys_of_tensors, unique=True, max_size=5)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(keys=key_sets)
def test_stripping_keeps_every_key_apart_and_is_final(keys: list[str]) -> None:
    stripped = strip_wrappers(keys)
    assert list(stripped) == keys
    assert len(set(stripped.values())) == len(keys)
    assert all(stripped.values())
    assert set(wrappers_in(keys)) <= set(WRAPPERS)
    assert (wrappers_in(keys) != ()) == (list(stripped.values()) != keys)


def test_what_dataparallel_wraps_is_unwrapped() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    plain = list(model.state_dict())
    wrapped = nn.DataParallel(copy.deepcopy(model))
    assert bare(*wrapped.state_dict()) == plain
