"""A state dict in several files: each tensor is where the index says, or that is told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import torchkeep
from effort import at_most
from formats.comparing_trees import assert_same
from formats.samples_folders import network, write_index, write_shards
from torchkeep.contents import Contents, TensorEntry
from torchkeep.errors import DamagedFile, LimitReached, NotAModelFile, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats import describe, examine
from torchkeep.formats.folders.folder import FileBudget
from torchkeep.formats.folders.kinds import examine_folder
from torchkeep.identify.integrity import integrity_of
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

INDEX = "model.safetensors.index.json"


def told(contents: Contents) -> list[tuple[str, str, str]]:
    return [(item.rule, item.severity, item.text) for item in contents.findings]


def change(folder: Path, **fields: Any) -> None:
    """Change fields of the index; a function gets the old value."""
    path = folder / INDEX
    table = json.loads(path.read_text())
    for name, value in fields.items():
        table[name] = value(table[name]) if callable(value) else value
    path.write_text(json.dumps(table))


@pytest.mark.parametrize("given", ["", INDEX])
def test_the_index_and_its_folder_stand_for_the_same_state_dict(given: str, tmp_path: Path) -> None:
    state = write_shards(tmp_path)
    contents = describe(tmp_path / given)
    assert contents.container == "safetensors-sharded"
    assert contents.path == tmp_path / given
    assert contents.kind == "state dict in 3 files"
    assert assert_same(contents.root, state, tmp_path) == 9
    assert contents.metadata["format"] == "pt"
    assert contents.metadata["total_size"] == "176"
    assert [member.path.name for member in contents.members] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    # The tensors' files, and where in them: nothing else is needed to load one.
    entry = contents.root["0.bias"]
    assert isinstance(entry, TensorEntry)
    assert entry.storage.path == tmp_path / "model-00002-of-00003.safetensors"


def test_files_of_torch_save_may_be_the_parts(tmp_path: Path) -> None:
    state = write_shards(tmp_path, stem="pytorch_model", suffix="bin")
    contents = describe(tmp_path)
    assert contents.container == "torch-sharded"
    assert contents.pickle_protocol == 2
    assert assert_same(contents.root, state, tmp_path) == 9


def test_of_several_indexes_the_one_that_is_loaded_first_is_told_of(tmp_path: Path) -> None:
    write_shards(tmp_path, stem="pytorch_model", suffix="bin")
    write_shards(tmp_path, variant=".fp16")
    state = write_shards(tmp_path)
    contents = describe(tmp_path)
    assert contents.container == "safetensors-sharded"
    assert contents.metadata["index"] == INDEX
    assert assert_same(contents.root, state, tmp_path) == 9
    names = [member.path.name for member in contents.members]
    assert names == [INDEX, "model.safetensors.index.fp16.json", "pytorch_model.bin.index.json"]
    # The pickles beside it are a part of what somebody may load.
    assert "torch._utils._rebuild_tensor_v2" in map(str, contents.globals)


def test_what_the_config_says_is_told_with_the_state_dict(tmp_path: Path) -> None:
    write_shards(tmp_path)
    about = {
        "architectures": ["TinyLM"],
        "model_type": "tiny",
        "auto_map": {"AutoModel": "m.TinyLM"},
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    contents = describe(tmp_path)
    assert contents.container == "safetensors-sharded"
    assert contents.kind == "TinyLM in 3 files"
    assert contents.metadata["model_type"] == "tiny"
    assert told(contents) == [
        ("remote-code", "note", "loading it with trust_remote_code=True would run 'm.TinyLM'")
    ]


def test_another_model_file_beside_the_shards_makes_it_a_folder(tmp_path: Path) -> None:
    state = write_shards(tmp_path)
    torch.save({"epoch": 1}, tmp_path / "extra.pth")
    contents = describe(tmp_path)
    assert contents.container == "folder"
    assert assert_same(contents.root, {INDEX: state, "extra.pth": {"epoch": 1}}, tmp_path) == 9


# --- What does not agree -------------------------------------------------------------------------


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    contents = describe(tmp_path)
    assert told(contents) == [
        (
            "missing-file",
            "damaged",
            "1 of its 3 files is missing: 'model-00002-of-00003.safetensors' (3 tensors are in it)",
        )
    ]
    assert len(contents.root) == 6
    for number in (1, 3):
        (tmp_path / f"model-0000{number}-of-00003.safetensors").unlink()
    with pytest.raises(DamagedFile, match="none of its files can be read"):
        describe(tmp_path)


def test_a_model_that_lacks_a_file_says_so_first_and_is_not_loaded(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert torchkeep.inspect(tmp_path).summary.startswith("State dict with 1 of 3 files missing: ")
    text = "1 of its 3 files is missing: 'model-00002-of-00003.safetensors' .3 tensors are in it"
    for path in (tmp_path, tmp_path / INDEX):
        for read in (torchkeep.load, torchkeep.open):
            with pytest.raises(DamagedFile, match=text):
                read(path)
    (tmp_path / "config.json").write_text('{"architectures": ["Tiny"]}')
    assert torchkeep.inspect(tmp_path).summary.startswith("Tiny with 1 of 3 files missing: ")


def test_a_model_with_a_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    write_shards(tmp_path)
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"the file is truncated.*3 tensors are in it"):
        torchkeep.load(tmp_path)


def test_a_file_beyond_the_budget_is_said_to_be_left_out(tmp_path: Path) -> None:
    write_shards(tmp_path)
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(2))
    assert [(rule, severity) for rule, severity, _ in told(contents)] == [
        ("unread-file", "ambiguous")
    ]
    assert told(contents)[0][2].startswith("1 file of it was not looked into: ")
    assert integrity_of(contents).state == "incomplete"


def test_a_broken_file_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    write_shards(tmp_path)
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    contents = describe(tmp_path)
    assert [(rule, severity) for rule, severity, _ in told(contents)] == [
        ("unreadable-file", "damaged")
    ]
    assert "'model-00002-of-00003.safetensors': the file is truncated" in told(contents)[0][2]
    assert len(contents.root) == 6


def test_a_tensor_that_is_not_in_its_file_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    file = "model-00001-of-00003.safetensors"
    change(tmp_path, weight_map=lambda table: {**table, "new.weight": file})
    assert told(describe(tmp_path)) == [
        ("missing-tensor", "damaged", f"1 tensors are not in '{file}': 'new.weight'")
    ]


def test_a_tensor_that_the_index_does_not_know_is_named_and_shown(tmp_path: Path) -> None:
    state = write_shards(tmp_path)
    change(tmp_path, weight_map=lambda table: {k: v for k, v in table.items() if k != "0.weight"})
    contents = describe(tmp_path)
    file = "model-00001-of-00003.safetensors"
    assert told(contents) == [
        ("extra-tensor", "damaged", f"1 tensors of '{file}' are not in the index: '0.weight'")
    ]
    assert assert_same(contents.root, state, tmp_path) == 9


def test_a_tensor_in_two_files_is_ambiguous(tmp_path: Path) -> None:
    write_shards(tmp_path)
    twice = {"0.weight": torch.zeros(4, 3), "2.bias": torch.zeros(2)}
    save_file(twice, tmp_path / "model-00003-of-00003.safetensors")
    rules = {(rule, severity): text for rule, severity, text in told(describe(tmp_path))}
    assert rules["duplicate-tensor", "ambiguous"] == (
        "1 tensors stand in several files: '0.weight'"
    )


def test_the_total_size_is_compared(tmp_path: Path) -> None:
    write_shards(tmp_path)
    change(tmp_path, metadata={"total_size": 175})
    assert told(describe(tmp_path)) == [
        ("total-size", "note", "it says that the tensors have 175 bytes, and they have 176")
    ]
    change(tmp_path, metadata={"total_size": 176.0})
    assert told(describe(tmp_path)) == []
    change(tmp_path, metadata=None)
    assert told(describe(tmp_path)) == []


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors"])
def test_a_file_outside_of_the_folder_is_dangerous_and_not_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write_shards(folder)
    save_file({"s": torch.ones(1)}, tmp_path / "secret.safetensors")
    change(folder, weight_map=lambda table: {**table, "s": name})
    opened: list[str] = []
    whole = InputFile.__init__

    def noting(self: InputFile, path: Path, **options: Any) -> None:
        opened.append(str(path))
        whole(self, path, **options)

    monkeypatch.setattr(InputFile, "__init__", noting)
    contents = describe(folder)
    assert not any("secret" in path for path in opened)
    assert "s" not in contents.root
    assert [(item.rule, item.severity, item.place) for item in contents.findings] == [
        ("path-outside", "dangerous", INDEX)  # the place: the index, as a member of the folder
    ]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_shards(folder)
    path = folder / "model-00002-of-00003.safetensors"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("../elsewhere")
    contents = describe(folder)
    assert [(item.rule, item.severity) for item in contents.findings] == [
        ("link-outside", "ambiguous")
    ]
    assert len(contents.root) == 6


def test_the_snapshot_of_a_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "models--tiny--model"
    folder = cache / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    state = write_shards(cache / "blobs")
    for number, path in enumerate(sorted((cache / "blobs").iterdir())):
        blob = path.rename(path.with_name(f"blob{number}"))
        (folder / path.name).symlink_to(Path("../../blobs") / blob.name)
    contents = describe(folder)
    assert told(contents) == []
    assert assert_same(contents.root, state, folder) == 9


def test_a_part_of_another_kind_than_the_index_says_is_ambiguous(tmp_path: Path) -> None:
    write_shards(tmp_path)
    path = tmp_path / "model-00001-of-00003.safetensors"
    state = network().state_dict()
    torch.save({name: state[name] for name in list(state)[0::3]}, path)
    contents = describe(tmp_path)
    assert contents.container == "torch-sharded"
    text = "its files should be safetensors, and there is torch-zip among them"
    assert ("other-format", "ambiguous", text) in told(contents)


def test_the_shards_of_other_frameworks_are_named(tmp_path: Path) -> None:
    write_index(tmp_path, "tf_model.h5.index.json", {"w": "tf_model-00001-of-00001.h5"})
    with pytest.raises(UnsupportedContent, match="its parts are of TensorFlow or Flax"):
        describe(tmp_path / "tf_model.h5.index.json")


# --- What is no index ----------------------------------------------------------------------------


NO_INDEXES = {
    "cut off": ('{"weight_map": {', DamagedFile, "it is no valid JSON"),
    "a key twice": ('{"weight_map": {"a": "b", "a": "c"}}', DamagedFile, "a key stands twice"),
    "no table": ('{"weight_map": ["a"]}', DamagedFile, "its weight_map is no table from tensors"),
    "no texts": ('{"weight_map": {"a": 1}}', DamagedFile, "its weight_map is no table from"),
    "half a character": ('{"weight_map": {"\\ud800": "a"}}', DamagedFile, "is not Unicode"),
    "not UTF-8": (b'{"weight_map": {"\xff": "a"}}', DamagedFile, "it is no valid JSON"),
    "NaN": ('{"weight_map": {}, "metadata": {"total_size": NaN}}', DamagedFile, "NaN is no number"),
    "deep": ('{"weight_map": ' + '{"a":' * 50_000, DamagedFile, "it is nested too deeply"),
    "something else": ('{"a": 1}', NotAModelFile, "JSON without a weight_map"),
    "empty": ('{"weight_map": {}}', DamagedFile, "none of its files can be read"),
}


@pytest.mark.parametrize(("text", "error", "problem"), NO_INDEXES.values(), ids=NO_INDEXES)
def test_what_is_no_index_is_one_error(
    text: str | bytes, error: type[Exception], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / INDEX
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=problem) as caught:
        describe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_an_index_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    state = write_shards(tmp_path)
    (tmp_path / INDEX).rename(tmp_path / "renamed")
    assert assert_same(describe(tmp_path / "renamed").root, state, tmp_path) == 9


def test_an_index_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    write_shards(tmp_path)
    with pytest.raises(LimitReached, match="reading needs more than the limit header_nbytes=100"):
        describe(tmp_path / INDEX, limits=Limits(header_nbytes=100))


def test_an_index_of_a_hundred_megabytes_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_bytes(b'{"weight_map": {')
    with path.open("r+b") as file:
        file.truncate(200_000_000)
    with at_most(50):
        assert isinstance(examine(path).problem, LimitReached)


def test_names_by_the_million_cost_little_and_say_little(tmp_path: Path) -> None:
    weight_map = {f"layer.{number}": "gone.safetensors" for number in range(300_000)}
    weight_map |= {f"l{number}": f"gone-{number}.safetensors" for number in range(10_000)}
    write_index(tmp_path, INDEX, weight_map)
    with at_most(500):
        contents = examine(tmp_path / INDEX)
    assert isinstance(contents.problem, DamagedFile)
    assert [item.rule for item in contents.findings] == ["missing-file"]
    assert "10001 of its 10,001 files are missing" in contents.findings[0].text
    assert len(contents.findings[0].text) < 300


def test_more_files_than_any_model_has_reach_a_limit(tmp_path: Path) -> None:
    write_index(tmp_path, INDEX, {str(number): f"{number}.bin" for number in range(20_001)})
    with pytest.raises(LimitReached, match="it names more than 20,000 files"):
        describe(tmp_path / INDEX)


def test_names_that_leave_the_folder_by_the_thousand_are_told_of_in_part(tmp_path: Path) -> None:
    write_index(tmp_path, INDEX, {str(number): f"../{number}.bin" for number in range(5_000)})
    contents = examine(tmp_path)
    assert 1 <= len(contents.findings) <= 101
    assert {item.severity for item in contents.findings} >= {"dangerous"}


# --- Cost ----------------------------------------------------------------------------------------


def test_only_headers_are_read_however_large_the_shards_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read_at = InputFile.read_at

    def counting(self: InputFile, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    numel, num = 1 << 28, 50
    weight_map = {}
    for number in range(num):
        name = f"model-{number:05d}.safetensors"
        row = {"dtype": "F32", "shape": [numel], "data_offsets": [0, 4 * numel]}
        header = json.dumps({f"w.{number}": row}).encode().ljust(128)
        with (tmp_path / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * numel)
        weight_map[f"w.{number}"] = name
    write_index(tmp_path, INDEX, weight_map, total_size=4 * numel * num)
    monkeypatch.setattr(InputFile, "read_at", counting)
    contents = describe(tmp_path)
    assert told(contents) == []
    assert contents.nbytes > 50 << 30
    assert sum(sizes) / num < 200_000
