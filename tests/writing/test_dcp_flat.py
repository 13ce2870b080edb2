"""writing/dcp_flat.py: a nested state dict is taken apart as PyTorch's planner does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from torchkeep.contents import Storage, TensorEntry
from torchkeep.errors import SaveRefused
from torchkeep.writing.dcp_flat import flatten

# Private to PyTorch, and what decides which checkpoints it can load: the rule is pinned here.
ENTRY = TensorEntry("float32", (), (), Storage("", 4, 0))
TENSOR = torch.tensor(1.0)

leaves = st.one_of(st.none(), st.integers(0, 9), st.text("ab.", max_size=2), st.just(ENTRY))
keys = st.one_of(st.text("ab.", max_size=2), st.integers(0, 2))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=12,
)


def live(value: Any) -> Any:
    """Return the same with a tensor in the place of its description."""
    if isinstance(value, dict):
        return {key: live(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(live, value))
    return TENSOR if value is ENTRY else value


@given(st.dictionaries(keys, values, max_size=4))
@settings(max_examples=500, deadline=None)
def test_any_state_dict_is_taken_apart_as_pytorch_does_it(state: dict[Any, Any]) -> None:
    try:
        expected, paths = flatten_state_dict(live(state))
    except ValueError:
        with pytest.raises(SaveRefused, match=r"two values would be called '.*'"):
            flatten(state)
        return
    found = flatten(state)
    assert found.paths == paths
    assert list(found.values) == list(expected)
    assert repr(live(found.values)) == repr(expected)


def test_what_leaves_no_trace_is_named() -> None:
    state = {"a": {}, "b": {"c": [{}, ENTRY]}, "d": {1: 2}, "e": [], "f": {1: 2, "g": 3}}
    found = flatten(state)
    assert found.empty == [("a",), ("b", "c", 0)]
    assert found.numbered == [("d",)]
    assert found.renamed == [("f",)]
    assert found.values == {"b.c.1": ENTRY, "d.1": 2, "e": [], "f.1": 2, "f.g": 3}


def test_a_state_dict_that_contains_itself_is_refused() -> None:
    state: dict[Any, Any] = {}
    state["a"] = state
    with pytest.raises(SaveRefused, match=r"nested too deeply, or contain themselves"):
        flatten(state)
