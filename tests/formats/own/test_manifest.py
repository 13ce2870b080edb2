"""The layout of a checkpoint's folder: what is written and what is read is told in one place."""

from __future__ import annotations

from pathlib import Path

from torchkeep.formats.own.manifest import (
    CHECKPOINT_NAME,
    OWN_FILES,
    StoredTensor,
    checkpoint_step,
    folder_name,
    is_checkpoint_there,
    name_of,
    place_of,
    size_problem,
    split_files,
    stored_tensors,
)

IN_MODEL = "objects/model/state/state_dict/fc.weight"
IN_STATE = "objects/optimizer/state/0/exp_avg"


def test_the_names_that_are_written_are_those_that_are_found() -> None:
    for name in (folder_name(0), folder_name(7), folder_name(10**9), folder_name(7, 3)):
        assert CHECKPOINT_NAME.fullmatch(name)
    assert CHECKPOINT_NAME.fullmatch("step-7") is None


def test_a_checkpoint_is_a_folder_or_a_file_with_the_suffix(tmp_path: Path) -> None:
    folder, file = tmp_path / folder_name(7), tmp_path / f"{folder_name(7, 2)}.pth"
    folder.mkdir()
    file.write_text("")
    assert [checkpoint_step(path) for path in (folder, file)] == [7, 7]
    assert is_checkpoint_there(folder)
    assert is_checkpoint_there(file)
    (tmp_path / folder_name(8)).write_text("")
    (tmp_path / f"{folder_name(8)}.pth").mkdir()
    (tmp_path / "notes.pth").write_text("")
    for name in ("step-00000008", "step-00000008.pth", "step-00000009", "notes.pth"):
        assert not is_checkpoint_there(tmp_path / name)


def test_what_is_frozen_has_a_file_of_its_own_and_the_same_names() -> None:
    for name in (IN_MODEL, IN_STATE):
        file, key = place_of(name)
        assert [name_of(part, key) for part in split_files(file)] == [name, name]
        assert {*split_files(file)} < {*OWN_FILES}


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
