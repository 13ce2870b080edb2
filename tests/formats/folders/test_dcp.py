"""A distributed checkpoint is described as PyTorch would load it; what does not fit is told."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import types
import zlib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import torchkeep
from effort import at_most
from formats.comparing_trees import assert_same, read
from formats.samples_folders import (
    ROWS,
    nested_state,
    quietly,
    rank_states,
    spread,
    write_dcp,
    write_hf_ranks,
    write_ranks,
    write_two_ranks,
)
from torchkeep.contents import Contents, Object, TensorEntry
from torchkeep.elements import ElementReader
from torchkeep.errors import DamagedFile, FileProblem, LimitReached, UnsupportedContent
from torchkeep.files import InputFile
from torchkeep.formats import describe, examine
from torchkeep.formats.folders import dcp_joining

SHARD = "__0_0.distcp"


def told(contents: Contents) -> list[tuple[str, str]]:
    return [(item.rule, item.severity) for item in contents.findings]


def as_torch_loads(folder: Path) -> Any:
    """Return the checkpoint as PyTorch puts it together; it was written by the test."""
    path = folder.with_name(f"{folder.name}.pt")
    quietly(dcp_to_torch_save, folder, path)
    return torch.load(path, weights_only=False)


def names_of(contents: Contents) -> set[str]:
    return set(map(str, contents.globals))


# --- What PyTorch writes -------------------------------------------------------------------------


WRITERS: dict[str, Callable[[Path], Any]] = {
    "one shard": write_dcp,
    "two ranks": write_two_ranks,
    "a shard for each tensor": lambda path: quietly(
        dcp.save,
        nested_state(),
        storage_writer=dcp.FileSystemWriter(path, single_file_per_rank=False),
    ),
    "several threads": lambda path: quietly(
        dcp.save, nested_state(), storage_writer=dcp.FileSystemWriter(path, thread_count=3)
    ),
    "no tensor": lambda path: write_dcp(path, state=lambda: {"epoch": 1, "x": {"y": [1, "z"]}}),
    "nothing": lambda path: write_dcp(path, state=dict),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_checkpoint_is_described_as_torch_loads_it(
    write: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    write(folder)
    contents = describe(folder)
    assert contents.container == "dcp"
    assert told(contents) == []
    assert_same(contents.root, as_torch_loads(folder), folder)


def test_the_metadata_file_stands_for_its_folder(tmp_path: Path) -> None:
    state = write_dcp(tmp_path)
    contents = describe(tmp_path / ".metadata")
    assert (contents.container, contents.path) == ("dcp", tmp_path / ".metadata")
    assert_same(contents.root, state, tmp_path)
    (tmp_path / ".metadata").rename(tmp_path / "of another name")
    assert_same(describe(tmp_path / "of another name").root, state, tmp_path)


def test_the_metadata_alone_still_tells_every_tensor(tmp_path: Path) -> None:
    write_dcp(tmp_path / "checkpoint")
    path = tmp_path / "kept.metadata"
    shutil.copy(tmp_path / "checkpoint" / ".metadata", path)
    contents = describe(path)
    assert contents.root["model"]["0.weight"].shape == (4, 3)
    assert isinstance(contents.root["epoch"], Object)
    assert told(contents) == [("missing-file", "note")]


def test_a_tensor_in_one_piece_is_a_view_of_its_shard_and_others_have_chunks(
    tmp_path: Path,
) -> None:
    write_two_ranks(tmp_path)
    model = describe(tmp_path).root["model"]
    assert {name: len(entry.chunks) for name, entry in model.items()} == {
        "rows": 2,
        "columns": 2,
        "boxes": 4,
        "whole": 0,
    }
    assert [chunk.offsets for chunk in model["columns"].chunks] == [(0, 0), (0, 2)]
    assert [chunk.path.name for chunk in model["columns"].chunks] == [SHARD, "__1_0.distcp"]
    assert model["whole"].storage.path is not None


def test_what_was_saved_where_is_told(tmp_path: Path) -> None:
    write_two_ranks(tmp_path)
    contents = describe(tmp_path)
    assert contents.kind == "distributed checkpoint in 2 shards"
    assert contents.metadata["version"] == "1.0.0"
    assert contents.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_ranks_that_save_each_by_itself_are_told_of_one_by_one(tmp_path: Path) -> None:
    state = {"model": {"fc.weight": torch.ones(2, 3)}, "epoch": 1}
    writer = dcp.FileSystemWriter(tmp_path)
    quietly(dcp.save, state, storage_writer=writer, no_dist=True, use_collectives=False)
    assert (tmp_path / "__0.metadata").exists()
    contents = describe(tmp_path)
    assert contents.container == "dcp"
    assert_same(contents.root, {"__0.metadata": state}, tmp_path)


def test_the_safetensors_shards_of_ranks_are_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    state = write_hf_ranks(folder)
    contents = describe(folder)
    assert contents.container == "dcp"
    assert contents.kind == "distributed checkpoint in 2 safetensors shards"
    assert len(contents.root["fc.weight"].chunks) == 2
    assert_same(contents.root, state, folder)
    files = sorted(folder.iterdir())
    files[0].unlink()
    contents = describe(folder)
    assert told(contents) == [("missing-piece", "damaged")]
    assert contents.root["fc.weight"].chunks == ()


def test_with_very_many_pieces_the_tensors_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = write_dcp(tmp_path)
    monkeypatch.setattr(dcp_joining, "MOST_PIECES", 10)
    contents = describe(tmp_path)
    assert told(contents) == [("pieces", "note")]
    assert len(contents.root["model"]["0.weight"].chunks) == 1
    assert contents.root["epoch"] == 3
    assert_same(contents.root, state, tmp_path)


class Zipped(StreamTransformExtension):
    """Packs each piece, as the extension for Zstandard does."""

    @staticmethod
    def registry_name() -> str:
        return "stream.zlib"

    @staticmethod
    def from_descriptor(version: str) -> Zipped:
        return Zipped()

    def get_descriptor(self) -> str:
        return "stream.zlib/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        class Packing(io.RawIOBase):
            packer = zlib.compressobj()

            def write(self, data: Any) -> int:
                output.write(self.packer.compress(data))
                return len(memoryview(data))

            def close(self) -> None:
                if not self.closed:
                    output.write(self.packer.flush())
                super().close()

        return Packing()  # type: ignore[return-value]

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        raise NotImplementedError


def test_packed_shards_are_named_and_not_guessed_at(tmp_path: Path) -> None:
    state = {"model": {"fc.weight": torch.ones(2, 3)}, "epoch": 1}
    writer = dcp.FileSystemWriter(tmp_path, _extensions=[Zipped()])
    quietly(dcp.save, state, storage_writer=writer)
    contents = describe(tmp_path)
    assert told(contents) == [("packed", "ambiguous")]
    assert contents.findings[0].text == (
        "the shards are packed with 'stream.zlib/1', which is not read"
    )
    entry = contents.root["model"]["fc.weight"]
    assert (entry.shape, entry.chunks, entry.storage.offset) == ((2, 3), (), None)
    assert isinstance(contents.root["epoch"], Object)


def test_other_model_files_in_the_folder_are_told_of_too(tmp_path: Path) -> None:
    state = write_dcp(tmp_path)
    torch.save({"iteration": 100}, tmp_path / "common.pt")
    (tmp_path / "metadata.json").write_text("{}")
    contents = describe(tmp_path)
    assert_same(contents.root, {**state, "common.pt": {"iteration": 100}}, tmp_path)
    assert [member.path.name for member in contents.members] == ["common.pt"]
    (tmp_path / "hidden").write_bytes(pickle.dumps(Attack()))
    assert "posix.system" in names_of(describe(tmp_path))


def test_only_directories_and_pickles_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(numel: int) -> Path:
        folder = tmp_path / str(numel)
        write_dcp(folder, state=lambda: {"model": {"fc.weight": torch.zeros(numel)}})
        return folder

    sizes: list[int] = []
    read_at = InputFile.read_at

    def counting(self: InputFile, offset: int, nbytes: int) -> bytes:
        sizes.append(nbytes)
        return read_at(self, offset, nbytes)

    folders = [write(numel) for numel in (1 << 10, 1 << 22)]
    monkeypatch.setattr(InputFile, "read_at", counting)
    for folder in folders:
        describe(folder)
    assert sum(sizes) < 400_000


# --- One shard -----------------------------------------------------------------------------------


def test_a_shard_alone_is_told_of_archive_by_archive(tmp_path: Path) -> None:
    write_dcp(tmp_path, state=lambda: {"w": torch.arange(3.0), "epoch": 3, "b": torch.ones(1)})
    path = tmp_path / SHARD
    contents = describe(path)
    assert (contents.container, contents.findings) == ("dcp", ())
    assert contents.kind == (
        "one shard of a distributed checkpoint: 2 tensors or pieces of them and 1 other value"
    )
    assert list(contents.root) == ["0", "1", "2"]
    assert contents.root["0"] == 3
    values = sorted(read(contents.root[key], path).tolist() for key in ("1", "2"))
    assert values == [[0.0, 1.0, 2.0], [1.0]]


def test_a_shard_with_something_hidden_in_one_archive_shows_it(tmp_path: Path) -> None:
    parts = [saved(torch.ones(2)), saved(Attack()), saved({"x": 1})]
    path = tmp_path / "shard"
    path.write_bytes(b"".join(parts))
    contents = describe(path)
    assert contents.container == "dcp"
    assert "posix.system" in names_of(contents)


def test_a_shard_that_ends_within_an_archive_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    whole = saved(torch.ones(2)) + saved({"x": 1})
    for length in range(len(whole) - 1, len(whole) - 300, -7):
        path.write_bytes(whole[:length])
        contents = examine(path)
        assert contents.problem is not None or contents.findings
    path.write_bytes(saved(torch.ones(2)) + b"PK\x03\x04" + saved({"x": 1}))
    assert examine(path).problem is not None


def test_one_archive_is_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(saved(torch.ones(2)))
    assert describe(path).container == "torch-zip"


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Attack:
    """Pickled as a call of a shell; the command is harmless, and never run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


# --- What is missing -----------------------------------------------------------------------------


def test_without_its_metadata_a_save_was_not_finished(tmp_path: Path) -> None:
    write_two_ranks(tmp_path)
    (tmp_path / ".metadata").unlink()
    contents = describe(tmp_path)
    assert told(contents) == [("unfinished", "damaged")]
    assert contents.findings[0].text.startswith("there is no .metadata, which is written last: ")
    assert list(contents.root) == [SHARD, "__1_0.distcp"]
    assert any(isinstance(value, TensorEntry) for value in contents.root[SHARD].values())


def test_a_missing_shard_is_named_and_its_tensors_can_not_be_read(tmp_path: Path) -> None:
    write_two_ranks(tmp_path)
    (tmp_path / "__1_0.distcp").unlink()
    contents = describe(tmp_path)
    assert told(contents) == [("missing-file", "damaged")]
    assert contents.findings[0].text == "1 of 2 shards can't be opened: '__1_0.distcp'"
    rows = contents.root["model"]["rows"]
    # Half of a tensor is none: the other half would be whatever the memory holds.
    assert (rows.shape, rows.chunks) == ((5, 6), ())
    with pytest.raises(DamagedFile):
        read(rows, tmp_path)


def test_a_truncated_shard_is_named_with_what_it_lost(tmp_path: Path) -> None:
    write_dcp(tmp_path)
    path = tmp_path / SHARD
    path.write_bytes(path.read_bytes()[:-1])
    contents = describe(tmp_path)
    assert told(contents) == [("truncated", "damaged")]
    assert contents.findings[0].text.startswith(
        f"'{SHARD}' is truncated: 1 piece would end behind it, "
    )


def test_a_damaged_piece_is_named_by_its_key(tmp_path: Path) -> None:
    write_dcp(tmp_path, state=lambda: {"w": torch.arange(3.0), "b": torch.ones(1)})
    path = tmp_path / SHARD
    data = path.read_bytes()
    start = data.rindex(b"PK\x03\x04", 0, data.rindex(b"archive/data.pkl", 0, len(data) // 2))
    path.write_bytes(data[:start] + b"XX" + data[start + 2 :])
    contents = describe(tmp_path)
    assert told(contents) == [("unreadable-piece", "damaged")]
    assert "1 archive can't be read, " in contents.findings[0].text


def test_a_shard_of_another_save_is_noted(tmp_path: Path) -> None:
    write_dcp(tmp_path)
    shutil.copy(tmp_path / SHARD, tmp_path / "__7_0.distcp")
    contents = describe(tmp_path)
    assert told(contents) == [("extra-file", "note")]
    assert "'__7_0.distcp'" in contents.findings[0].text


def test_what_a_rank_did_not_write_is_missing(tmp_path: Path) -> None:
    first, second = rank_states()
    second["model"]["rows"] = spread(ROWS, ((4, 0), (1, 6)))
    quietly(write_ranks_unchecked, tmp_path, [first, second])
    contents = describe(tmp_path)
    assert ("missing-piece", "damaged") in told(contents)
    assert contents.findings[0].text.startswith("parts of 1 tensor were written by no rank: ")
    assert "rows: 6 of 30 elements are in no piece" in contents.findings[0].text
    assert contents.root["model"]["rows"].chunks == ()


def test_pieces_that_overlap_are_ambiguous(tmp_path: Path) -> None:
    first, second = rank_states()
    second["model"]["rows"] = spread(ROWS, ((2, 0), (3, 6)))
    quietly(write_ranks_unchecked, tmp_path, [first, second])
    contents = describe(tmp_path)
    assert ("overlapping-pieces", "ambiguous") in told(contents)
    assert contents.findings[0].text.startswith("the pieces of 1 tensor contradict: ")
    assert "rows: its pieces overlap" in contents.findings[0].text


def test_pieces_that_overlap_and_leave_a_gap_are_not_put_together(tmp_path: Path) -> None:
    """As many elements as the tensor has, and yet some of them are in no piece."""
    first, second = rank_states()
    first["model"]["rows"] = spread(ROWS, ((0, 0), (3, 6)))
    second["model"]["rows"] = spread(ROWS, ((1, 0), (2, 6)))
    quietly(write_ranks_unchecked, tmp_path, [first, second])
    rows = describe(tmp_path).root["model"]["rows"]
    text = r"tensor 'rows' can't be put together: some of its pieces are missing, cut off, of"
    with ElementReader(tmp_path) as reader, pytest.raises(DamagedFile, match=text):
        reader.payload(rows, "rows")
    with pytest.raises(DamagedFile, match=r"can't be put together"):
        torchkeep.load(tmp_path)


def write_ranks_unchecked(folder: Path, states: list[dict[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # PyTorch refuses to write what another program may have written.
        planner = "torch.distributed.checkpoint.default_planner._validate_global_plan"
        patch.setattr(planner, lambda *_: [])
        write_ranks(folder, states)


# --- A metadata that lies ------------------------------------------------------------------------


@dataclass
class Lie:
    """A checkpoint of one tensor and one value, and its metadata as live objects to be changed."""

    folder: Path
    metadata: Any = field(init=False)

    def __post_init__(self) -> None:
        write_dcp(self.folder, state=lambda: {"m": {"w": torch.arange(6.0).view(2, 3)}, "n": 5})
        self.metadata = pickle.loads((self.folder / ".metadata").read_bytes())

    def place(self, key: str) -> _StorageInfo:
        return next(v for k, v in self.metadata.storage_data.items() if k.fqn == key)

    def examine(self) -> Contents:
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.metadata))
        return examine(self.folder)


@pytest.fixture
def lie(tmp_path: Path) -> Lie:
    return Lie(tmp_path / "lie")


def test_the_truth_has_no_findings(lie: Lie) -> None:
    contents = lie.examine()
    assert (contents.problem, contents.findings) == (None, ())
    assert contents.root["n"] == 5


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", ""])
def test_a_shard_outside_of_the_folder_is_dangerous_and_not_opened(
    name: str, lie: Lie, tmp_path: Path
) -> None:
    shutil.copy(lie.folder / SHARD, tmp_path / "secret")
    lie.place("n").relative_path = name
    contents = lie.examine()
    assert told(contents) == [("path-outside", "dangerous"), ("unused-bytes", "note")]
    assert isinstance(contents.root["n"], Object)
    assert contents.root["m"]["w"].storage.offset is not None


def test_a_piece_behind_the_end_of_its_shard_is_damaged(lie: Lie) -> None:
    lie.place("m.w").offset = 1 << 50
    contents = lie.examine()
    assert ("truncated", "damaged") in told(contents)
    assert contents.root["m"]["w"].storage.offset is None


def test_pieces_that_share_bytes_are_ambiguous_and_read_once(lie: Lie) -> None:
    place = lie.place("m.w")
    lie.place("n").offset, lie.place("n").length = place.offset, place.length
    contents = lie.examine()
    assert ("shared-bytes", "ambiguous") in told(contents)


def test_a_piece_of_another_shape_or_dtype_is_ambiguous(lie: Lie) -> None:
    told_of = lie.metadata.state_dict_metadata["m.w"]
    told_of.size, told_of.chunks[0].sizes = torch.Size([3, 2]), torch.Size([3, 2])
    contents = lie.examine()
    assert told(contents) == [("other-piece", "ambiguous")]
    assert contents.findings[0].text == (
        "a piece of 'm.w' is said to be float32 [3, 2], and is not"
    )
    assert contents.root["m"]["w"].chunks == ()
    told_of.size, told_of.chunks[0].sizes = torch.Size([2, 3]), torch.Size([2, 3])
    told_of.properties.dtype = torch.int32
    assert told(lie.examine()) == [("other-piece", "ambiguous")]


def test_a_value_that_is_said_to_be_a_tensor_is_ambiguous(lie: Lie) -> None:
    one, other = lie.place("m.w"), lie.place("n")
    one.offset, other.offset = other.offset, one.offset
    one.length, other.length = other.length, one.length
    assert ("other-piece", "ambiguous") in told(lie.examine())


def test_a_piece_that_reaches_out_of_its_tensor_makes_no_sense(lie: Lie) -> None:
    lie.metadata.state_dict_metadata["m.w"].chunks[0].offsets = torch.Size([1, 0])
    contents = lie.examine()
    assert ("metadata", "damaged") in told(contents)
    assert "m" not in contents.root


def test_a_piece_without_a_place_is_missing(lie: Lie) -> None:
    lie.metadata.storage_data = {
        key: value for key, value in lie.metadata.storage_data.items() if key.fqn != "m.w"
    }
    contents = lie.examine()
    assert told(contents) == [("missing-piece", "damaged"), ("unused-bytes", "note")]
    lie.metadata.storage_data = None
    assert told(lie.examine()) == [("missing-piece", "damaged"), ("extra-file", "note")]


def test_paths_that_contradict_each_other_are_ambiguous(lie: Lie) -> None:
    lie.metadata.planner_data["n"] = ("m", "w", "x")
    contents = lie.examine()
    assert told(contents) == [("path-clash", "ambiguous")]
    assert contents.root["n"] == 5
    lie.metadata.planner_data["n"] = ("m", "w")
    assert told(lie.examine()) == [("path-clash", "ambiguous")]


@pytest.mark.parametrize("path", [("l", 10**12), ("l", 5_000), ("l", -1), ("l", 0, 10**9)])
def test_places_in_lists_cost_no_more_than_there_are_values(path: Any, lie: Lie) -> None:
    lie.metadata.planner_data["n"] = path
    contents = lie.examine()
    assert told(contents) == [("path-clash", "ambiguous")]
    assert contents.root["n"] == 5


@pytest.mark.parametrize("path", [(), "n", ("n",) * 1_000, (None,), (1.5,), None])
def test_a_path_that_is_none_leaves_the_key_where_it_is(path: Any, lie: Lie) -> None:
    lie.metadata.planner_data["n"] = path
    contents = lie.examine()
    assert contents.root["n"] == 5


def test_a_checkpoint_without_paths_is_flat(lie: Lie) -> None:
    lie.metadata.planner_data = None
    assert list(lie.examine().root) == ["m.w", "n"]


BROKEN = {
    "a size": {"size": (-1, 3)},
    "too many elements": {"size": torch.Size([1 << 40, 1 << 40])},
    "sizes of another kind": {"size": ["a"]},
    "no pieces": {"chunks": None},
    "a piece of another kind": {"chunks": [5]},
    "no properties": {"properties": None},
    "a dtype that is none": {"properties": TensorProperties(dtype="float32")},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_tensor_that_makes_no_sense_is_named(change: dict[str, Any], lie: Lie) -> None:
    lie.metadata.state_dict_metadata["m.w"].__dict__.update(change)
    contents = lie.examine()
    assert ("metadata", "damaged") in told(contents)
    assert "the metadata makes no sense at 1 place: 'm.w'" in contents.findings[0].text
    assert contents.root["n"] == 5


@pytest.mark.parametrize(
    "change",
    [{"offset": -1}, {"length": "x"}, {"relative_path": 5}, {"transform_descriptors": 5}],
)
def test_a_place_that_makes_no_sense_is_named(change: dict[str, Any], lie: Lie) -> None:
    lie.place("n").__dict__.update(change)
    contents = lie.examine()
    assert ("metadata", "damaged") in told(contents)
    assert isinstance(contents.root["n"], Object)


def test_keys_and_entries_of_other_kinds_are_named(lie: Lie) -> None:
    lie.metadata.state_dict_metadata |= {5: BytesStorageMetadata(), "odd": {"a": 1}}
    contents = lie.examine()
    assert "the metadata makes no sense at 2 places: '<int>', 'odd'" in contents.findings[0].text


def test_two_places_for_one_piece_are_ambiguous(lie: Lie) -> None:
    place = lie.place("n")
    twin = _StorageInfo(place.relative_path, place.offset + 1, place.length)
    lie.metadata.storage_data = Pairs(
        [*lie.metadata.storage_data.items(), (MetadataIndex("n"), twin)]
    )
    contents = lie.examine()
    assert ("two-places", "ambiguous") in told(contents)


class Pairs:
    """Pickled as a dictionary of these pairs, equal keys and all."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.pairs)


def test_bytes_behind_the_metadata_are_ambiguous(lie: Lie) -> None:
    path = lie.folder / ".metadata"
    path.write_bytes(path.read_bytes() + b"more")
    assert told(examine(lie.folder)) == [("trailing-bytes", "ambiguous")]


def test_what_a_metadata_names_besides_is_seen(lie: Lie) -> None:
    lie.metadata.planner_data["attack"] = Attack()
    assert "posix.system" in names_of(lie.examine())


def test_what_a_pickled_value_names_is_seen(tmp_path: Path) -> None:
    write_dcp(tmp_path, state=lambda: {"w": torch.ones(1), "evil": Attack()})
    contents = examine(tmp_path)
    assert "posix.system" in names_of(contents)


def test_what_the_archive_of_a_tensor_names_is_seen(lie: Lie) -> None:
    place, path = lie.place("m.w"), lie.folder / SHARD
    evil = saved({"w": torch.ones(2, 3), "x": Attack()})
    path.write_bytes(path.read_bytes()[: place.offset] + evil)
    place.length = len(evil)
    assert "posix.system" in names_of(lie.examine())


NO_METADATA = {
    "cut off": (lambda data: data[: len(data) // 2], DamagedFile, "the pickle is truncated"),
    "another object": (
        lambda _: pickle.dumps(TensorStorageMetadata(TensorProperties(), torch.Size([]), [])),
        DamagedFile,
        "is not the metadata of a distributed checkpoint",
    ),
    "nothing in it": (
        lambda _: pickle.dumps(Metadata(None)),  # type: ignore[arg-type]
        DamagedFile,
        "the metadata has no state_dict_metadata",
    ),
}


@pytest.mark.parametrize(("change", "error", "problem"), NO_METADATA.values(), ids=NO_METADATA)
def test_what_is_no_metadata_is_one_error(
    change: Callable[[bytes], bytes], error: type[FileProblem], problem: str, lie: Lie
) -> None:
    path = lie.folder / ".metadata"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(error, match=problem) as caught:
        describe(lie.folder)
    assert str(caught.value).startswith(f"{lie.folder}")


def test_names_seen_before_a_metadata_breaks_are_kept(lie: Lie) -> None:
    lie.metadata.planner_data = {"attack": Attack()}
    data = pickle.dumps(lie.metadata, 2)  # a newer one is a single frame, and refused at once
    for given in (lie.folder, lie.folder / ".metadata"):
        (lie.folder / ".metadata").write_bytes(data[:-20])
        contents = examine(given)
        assert isinstance(contents.problem, DamagedFile)
        assert "posix.system" in names_of(contents)


@pytest.mark.parametrize(("num_items", "num_boxes"), [(1, 1_500), (300, 800), (500, 1)])
def test_a_small_hostile_metadata_costs_little(
    num_items: int, num_boxes: int, tmp_path: Path
) -> None:
    """A pickle names a thing again in two bytes."""
    whole, zeros = torch.Size([2] * 50), torch.Size([0] * 50)
    boxes = [ChunkStorageMetadata(zeros, torch.Size([1] * 50))] * num_boxes
    tensor = TensorStorageMetadata(TensorProperties(), whole, boxes)
    path = ("l", *range(90))
    items: Any = {f"{number}": tensor for number in range(num_items)}
    places = {MetadataIndex("0", zeros): _StorageInfo(SHARD, 0, 10)}
    data = pickle.dumps(Metadata(items, dict.fromkeys(items, path), places))
    assert len(data) < 12_000
    (tmp_path / ".metadata").write_bytes(data)
    (tmp_path / SHARD).write_bytes(b"PK" * 100)
    with at_most(50):
        contents = examine(tmp_path)
    assert isinstance(contents.problem, LimitReached) == (num_items * num_boxes > 5_000)
    assert contents.findings or contents.problem is not None


# --- Other ages ----------------------------------------------------------------------------------


@contextmanager
def classes_of(module: str, *names: str) -> Any:
    """Make classes of these names importable from a module for as long as it takes to pickle."""
    made = types.ModuleType(module)
    for name in names:
        setattr(made, name, type(name, (), {"__module__": module}))
    old = sys.modules.get(module)
    sys.modules[module] = made
    try:
        yield made
    finally:
        if old is None:
            del sys.modules[module]
        else:
            sys.modules[module] = old


def filled(cls: type, state: Any) -> Any:
    """Return an object that is pickled with this state."""
    made = cls.__new__(cls)
    if isinstance(state, dict):
        made.__dict__.update(state)
    else:
        cls.__getstate__ = lambda self: self.__dict__["state"]  # type: ignore[attr-defined]
        made.__dict__["state"] = state
    return made


PACKAGES = {
    "1.13": "torch.distributed._shard.checkpoint",
    "2.0": "torch.distributed.checkpoint",
}


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_plain", [False, True], ids=["a tuple", "its attributes"])
def test_the_layouts_of_older_releases_are_read(
    package: str, protocol: int, is_plain: bool, tmp_path: Path
) -> None:
    """Up to PyTorch 2.2 the properties came from another module; `storage_meta` is newer."""
    part = saved(torch.arange(6.0).view(2, 3))
    (tmp_path / SHARD).write_bytes(part)
    names = ("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "MetadataIndex")
    shard = "torch.distributed._shard.sharded_tensor.metadata"
    with ExitStack() as stack:
        meta = stack.enter_context(classes_of(f"{package}.metadata", *names))
        files = stack.enter_context(classes_of(f"{package}.filesystem", "_StorageInfo"))
        properties = stack.enter_context(classes_of(shard, "TensorProperties"))
        state = {"dtype": torch.float32, "requires_grad": False}
        pair = (torch.float32, torch.strided, False, 0, False)
        chunk = {"offsets": torch.Size([0, 0]), "sizes": torch.Size([2, 3])}
        tensor = {
            "properties": filled(properties.TensorProperties, state if is_plain else pair),
            "size": torch.Size([2, 3]),
            "chunks": [filled(meta.ChunkStorageMetadata, chunk)],
        }
        index = {"fqn": "w", "offset": torch.Size([0, 0]), "index": None}
        place = {"relative_path": SHARD, "offset": 0, "length": len(part)}
        made = {
            "state_dict_metadata": {"w": filled(meta.TensorStorageMetadata, tensor)},
            "planner_data": None,
            "storage_data": {filled(meta.MetadataIndex, index): filled(files._StorageInfo, place)},
        }
        data = pickle.dumps(filled(meta.Metadata, made), protocol)
    (tmp_path / ".metadata").write_bytes(data)
    contents = describe(tmp_path)
    assert contents.findings == ()
    assert_same(contents.root, {"w": torch.arange(6.0).view(2, 3)}, tmp_path)


def test_the_preview_layout_of_1_12_is_named(tmp_path: Path) -> None:
    package = "torch.distributed._shard.checkpoint.metadata"
    with classes_of(package, "Metadata", "ShardedTensorStorageMetadata") as meta:
        item = filled(meta.ShardedTensorStorageMetadata, {"tensor_metadata": None})
        data = pickle.dumps(filled(meta.Metadata, {"state_dict_metadata": {"w": item}}))
    (tmp_path / ".metadata").write_bytes(data)
    with pytest.raises(UnsupportedContent, match="the metadata has the layout of PyTorch 1"):
        describe(tmp_path)


# --- Safety ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(3)], {"a": 5}, {7: torch.ones(3)}])
def test_a_shard_of_safetensors_that_is_something_else_has_no_tensors(tmp_path, value):
    write_hf_ranks(tmp_path / "dcp")
    shard = next((tmp_path / "dcp").glob("*.safetensors"))
    torch.save(value, shard)
    contents = examine(tmp_path / "dcp")
    assert contents.container == "dcp"


class Stranger:
    """Not one of PyTorch's records."""


def test_pytorchs_own_records_are_data_and_others_need_trust(tmp_path):
    write_dcp(tmp_path)
    safety = torchkeep.inspect(tmp_path).safety
    assert safety.verdict == "data-only"
    assert "torch.distributed.checkpoint.metadata.Metadata" in safety.globals
    with (tmp_path / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    metadata.stranger = Stranger()
    with (tmp_path / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)
    safety = torchkeep.inspect(tmp_path).safety
    assert safety.verdict == "needs-trust"
    assert [finding.place for finding in safety.findings] == [f"{__name__}.Stranger"]
