"""What every kind of folder promises: what was saved, or findings; and never more than that.

The suite runs over every sample of `samples_folders.py`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.comparing_trees import assert_same
from formats.samples import Sample
from formats.samples_folders import FOLDER_SAMPLES, network
from torchkeep.contents import Contents, TensorEntry
from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    FileUnreadable,
    LimitReached,
    NotAModelFile,
)
from torchkeep.files import InputFile
from torchkeep.formats import describe, examine
from torchkeep.formats.folders.folder import FileBudget, list_folder, listed, way_out
from torchkeep.formats.folders.kinds import FOLDER_KINDS, examine_folder
from torchkeep.pickles.limits import DEFAULT_LIMITS, Limits

every_sample = pytest.mark.parametrize("sample", FOLDER_SAMPLES, ids=lambda sample: sample.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return each sample's folder and what it holds, written once; nobody may change it."""
    made: dict[str, tuple[Path, Any]] = {}

    def write(sample: Sample) -> tuple[Path, Any]:
        if sample.name not in made:
            folder = tmp_path_factory.mktemp("sample") / "model"
            made[sample.name] = folder, sample.write(folder)
        return made[sample.name]

    return write


def copied(folder: Path, target: Path) -> Path:
    """Return a copy of a folder; the names of ours say what they are, and stay."""
    target = target / folder.name
    for root, _, files in os.walk(folder):
        place = target / Path(root).relative_to(folder)
        place.mkdir(parents=True)
        for name in files:
            (place / name).write_bytes((Path(root) / name).read_bytes())
    return target


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entries(value: Any) -> Iterator[TensorEntry]:
    if isinstance(value, TensorEntry):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from entries(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from entries(item)


def test_every_kind_has_a_sample() -> None:
    containers = {sample.container for sample in FOLDER_SAMPLES}
    assert containers >= {kind.name for kind in FOLDER_KINDS}
    assert {"safetensors-sharded", "torch-sharded"} <= containers


# --- The same content ----------------------------------------------------------------------------


@every_sample
def test_a_sample_is_described_as_what_was_saved(sample: Sample, written: Any) -> None:
    folder, saved = written(sample)
    contents = describe(folder)
    assert (contents.path, contents.container) == (folder, sample.container)
    assert [item for item in contents.findings if item.severity != "note"] == []
    assert contents.kind
    root = {key: contents.root[key] for key in saved} if contents.members else contents.root
    assert assert_same(without_class(root), saved, folder) > 0


def without_class(root: Any) -> Any:
    """Return a tree without the names of optimizers' classes, which `state_dict()` lacks."""
    optimizer = root.get("optimizer")
    if not isinstance(optimizer, dict):
        return root
    rest = {key: value for key, value in optimizer.items() if key != "class"}
    return {**root, "optimizer": rest}


@every_sample
def test_every_tensor_lies_in_a_file_of_the_folder(sample: Sample, written: Any) -> None:
    folder, _ = written(sample)
    found = list(entries(describe(folder).root))
    assert found
    for entry in found:
        for path, start, nbytes in places(entry):
            assert path is not None
            assert path.is_relative_to(folder)
            assert start + nbytes <= path.stat().st_size


def places(entry: TensorEntry) -> list[tuple[Path | None, int, int]]:
    if entry.chunks:
        return [(chunk.path, chunk.start, chunk.nbytes) for chunk in entry.chunks]
    assert entry.storage.offset is not None
    return [(entry.storage.path, entry.storage.offset, entry.storage.nbytes)]


@every_sample
def test_a_folder_by_a_relative_name_and_by_a_link_is_the_same(
    sample: Sample, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = written(sample)
    expected = describe(folder)
    monkeypatch.chdir(folder.parent)
    assert outline(describe(folder.name)) == outline(expected)
    (tmp_path / folder.name).symlink_to(folder)
    assert outline(describe(tmp_path / folder.name)) == outline(expected)


def outline(contents: Contents) -> Any:
    tensors = [(e.dtype, e.shape, len(e.chunks)) for e in entries(contents.root)]
    return contents.container, contents.kind, contents.nbytes, tensors, len(contents.members)


# --- Damage --------------------------------------------------------------------------------------


@every_sample
def test_any_file_may_be_missing(sample: Sample, written: Any, tmp_path: Path) -> None:
    whole, _ = written(sample)
    num = len(files_of(whole))
    for index in range(num):
        folder = copied(whole, tmp_path / str(index))
        gone = files_of(folder)[index]
        gone.unlink()
        contents = examine(folder)
        assert is_told(contents) or is_dispensable(gone), gone


@every_sample
def test_any_file_may_be_truncated(sample: Sample, written: Any, tmp_path: Path) -> None:
    whole, _ = written(sample)
    rng = random.Random(0)
    for index, path in enumerate(files_of(whole)):
        nbytes = path.stat().st_size
        folder = copied(whole, tmp_path / str(index))
        cut = files_of(folder)[index]
        for length in {0, 1, nbytes // 2, nbytes - 1, rng.randrange(nbytes or 1)}:
            cut.write_bytes(path.read_bytes()[:length])
            contents = examine(folder)
            assert is_told(contents) or is_dispensable(cut), (cut, length)


@every_sample
def test_any_byte_may_be_flipped(sample: Sample, written: Any, tmp_path: Path) -> None:
    whole, _ = written(sample)
    folder = copied(whole, tmp_path)
    rng = random.Random(0)
    for path in files_of(folder):
        data = path.read_bytes()
        for _ in range(20 if data else 0):
            flipped = bytearray(data)
            flipped[rng.randrange(len(data))] ^= rng.randint(1, 255)
            path.write_bytes(flipped)
            for entry in entries(examine(folder).root):
                if entry.chunks or entry.storage.offset is not None:
                    assert all(a + n <= p.stat().st_size for p, a, n in places(entry) if p)
        path.write_bytes(data)


def is_told(contents: Contents) -> bool:
    return contents.problem is not None or any(f.severity != "note" for f in contents.findings)


def is_dispensable(path: Path) -> bool:
    """Whether a folder without this file is another sound folder."""
    if path.parent.name.startswith("step-"):
        return False
    names = ("config.json", "tokenizer.json", "README.md", "notes.txt", "train.py", "latest")
    endings = (".index.json", "trainer_state.json", "adapter_config.json", "model_index.json")
    return (
        path.name in names
        or path.name.endswith((*endings, ".fp16.json", ".lock"))
        # One of several models; the name says nothing about the others.
        or path.suffix in (".pth", ".pt", ".bin")
        or path.name in ("model.safetensors", "second.safetensors")
        # The last rows of a tensor whose size nothing else tells.
        or path.name.startswith("shard-")
    )


# --- What else may lie there ---------------------------------------------------------------------


@every_sample
def test_pipes_loops_and_links_in_a_folder_are_not_touched(
    sample: Sample, written: Any, tmp_path: Path
) -> None:
    whole, _ = written(sample)
    folder = copied(whole, tmp_path)
    expected = outline(examine(folder))
    os.mkfifo(folder / "pipe.pth")
    (folder / "loop.pth").symlink_to("loop.pth")
    (folder / "nowhere.safetensors").symlink_to("gone")
    (folder / "circle").symlink_to(".")
    (folder / "zeros.bin").symlink_to("/dev/zero")
    assert outline(examine(folder)) == expected


def test_a_file_that_vanishes_while_the_folder_is_read_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.pth", "b.pth", "c.pth"):
        torch.save(network().state_dict(), tmp_path / name)
    opened: list[str] = []
    whole = InputFile.__init__

    def vanishing(self: InputFile, path: Path, **options: Any) -> None:
        opened.append(Path(path).name)
        if opened[-1] == "b.pth":
            Path(path).unlink(missing_ok=True)
        whole(self, path, **options)

    monkeypatch.setattr(InputFile, "__init__", vanishing)
    contents = examine(tmp_path)
    assert "b.pth" in opened
    assert list(contents.root) == ["a.pth", "c.pth"]
    assert [(item.rule, item.place) for item in contents.findings] == [("unreadable-file", "b.pth")]
    assert contents.findings[0].text == "there is no such file"


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="there is no such"):
        examine(tmp_path / "nowhere")
    with pytest.raises(FileMissing, match="there is no such folder"):
        examine_folder(tmp_path / "nowhere", DEFAULT_LIMITS)


def test_a_folder_that_may_not_be_listed_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FileUnreadable, match="the folder may not be listed"):
        examine(tmp_path)


def test_an_empty_folder_and_one_without_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotAModelFile, match="the folder is empty"):
        describe(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(NotAModelFile, match="the only file in the folder is no model"):
        describe(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "inner").mkdir()
    with pytest.raises(NotAModelFile, match="there is no model file in the folder"):
        describe(tmp_path)


def test_no_more_files_are_looked_into_than_one_may_wait_for(tmp_path: Path) -> None:
    for number in range(5):
        torch.save({"n": number}, tmp_path / f"{number}.pth")
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(3))
    assert list(contents.root) == ["0.pth", "1.pth", "2.pth"]
    assert [(item.severity, item.text) for item in contents.findings] == [
        (
            "ambiguous",
            "2 files were not looked into, since 2,000 files of a folder are at most: "
            "'3.pth', '4.pth'",
        )
    ]


def test_no_more_names_are_listed_than_one_may_wait_for(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_bytes(b"")
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(names=4))
    assert isinstance(contents.problem, LimitReached)
    assert "there are more than 200,000 files in the folder" in str(contents.problem)


def test_a_file_that_takes_more_than_a_limit_is_ambiguous(tmp_path: Path) -> None:
    torch.save({"n": list(range(100))}, tmp_path / "a.pth")
    torch.save({"n": 1}, tmp_path / "b.pth")
    contents = examine(tmp_path, limits=Limits(steps=50))
    assert list(contents.root) == ["b.pth"]
    assert [(item.severity, item.place) for item in contents.findings] == [("ambiguous", "a.pth")]


# --- Names that lead elsewhere -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "", "a\0b", "C:\\x", "\\\\host\\x", "..\\x", "\ud800"],
)
def test_a_name_that_leads_out_of_the_folder_is_dangerous(name: str, tmp_path: Path) -> None:
    finding = way_out(tmp_path, name)
    assert finding is not None
    assert (finding.rule, finding.severity) == ("path-outside", "dangerous")


def test_a_link_out_of_the_folder_is_ambiguous_but_for_the_hub_cache(tmp_path: Path) -> None:
    cache = tmp_path / "models--x--y"
    folder = cache / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "abc").write_bytes(b"")
    (cache / "other").write_bytes(b"")
    (folder / "inside").write_bytes(b"")
    (folder / "model.bin").symlink_to("../../blobs/abc")
    (folder / "out.bin").symlink_to("../../other")
    (folder / "in.bin").symlink_to("inside")
    assert way_out(folder, "model.bin") is None
    assert way_out(folder, "in.bin") is None
    finding = way_out(folder, "out.bin")
    assert finding is not None
    assert (finding.rule, finding.severity) == ("link-outside", "ambiguous")


def test_long_lists_and_names_are_cut() -> None:
    assert listed(["a"]) == "'a'"
    assert listed("abcde") == "'a', 'b', 'c' and 2 more"
    assert len(listed(["x" * 10_000] * 10)) < 500


def test_a_folder_is_sorted_into_files_folders_and_others(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "p")
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "dir").symlink_to("d")
    folder = list_folder(tmp_path, DEFAULT_LIMITS)
    assert list(folder.files.items()) == [("a", 1), ("b", 2), ("link", 2)]
    assert (folder.folders, folder.others, folder.nbytes) == (("d",), ("dir", "p"), 5)
    assert folder.head("p") == b""
    with pytest.raises(DamagedFile, match="there is no such file"):
        folder.read("gone", 10)
