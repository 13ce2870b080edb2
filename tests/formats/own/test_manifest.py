"""The layout of a checkpoint's folder: what is written and what is read is told in one place."""

from __future__ import annotations

from torchkeep.formats.own.manifest import (
    CHECKPOINT_NAME,
    StoredTensor,
    folder_name,
    name_of,
    place_of,
    size_problem,
    stored_tensors,
)

IN_MODEL = "objects/model/state/state_dict/fc.weight"
IN_STATE = "objects/optimizer/state/0/exp_avg"


def test_the_names_that_are_written_are_those_that_are_found() -> None:
    for name in (folder_name(0), folder_name(7), folder_name(10**9), folder_name(7, 3)):
        assert CHECKPOINT_NAME.fullmatch(name)
    assert CHECKPOINT_NAME.fullmatch("step-7") is None


def test_a_tensor_has_one_place_and_a_place_one_tensor() -> None:
    assert place_of(IN_MODEL) == ("model.safetensors", "fc.weight")
    assert place_of(IN_STATE) == ("state.safetensors", IN_STATE)
    assert [name_of(*place_of(name)) for name in (IN_MODEL, IN_STATE)] == [IN_MODEL, IN_STATE]


def test_a_tied_tensor_is_where_the_one_is_that_was_kept() -> None:
    manifest = {
        "tensors": {"model.safetensors": {"a": "1f", "b": "1f"}, "state.safetensors": {"c": "2e"}},
        "tied": {"model.safetensors": {"b": "a"}, "state.safetensors": {}},
    }
    prefix = "objects/model/state/state_dict/"
    assert list(stored_tensors(manifest)) == [
        StoredTensor(f"{prefix}a", "model.safetensors", "a", "1f"),
        StoredTensor(f"{prefix}b", "model.safetensors", "a", "1f"),
        StoredTensor("c", "state.safetensors", "c", "2e"),
    ]


def test_a_wrong_size_is_told_by_both_numbers() -> None:
    assert size_problem("model.safetensors", 8, {"nbytes": 8}) == ""
    told = size_problem("model.safetensors", 7, {"nbytes": 8})
    assert told == "model.safetensors has 7 bytes instead of 8"
