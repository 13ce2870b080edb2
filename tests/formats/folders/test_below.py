"""Folders within a folder: whatever lies there is told of and judged, or said to be left out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torchkeep
from effort import at_most
from formats.samples import Sample
from formats.samples_folders import (
    FOLDER_SAMPLES,
    network,
    write_deepspeed,
    write_hf_model,
    write_loose,
    write_run,
    write_shards,
    write_trainer,
)
from torchkeep.contents import Contents
from torchkeep.errors import LimitReached, NotAModelFile
from torchkeep.formats import describe, examine
from torchkeep.formats.folders.below import MOST_LEVELS
from torchkeep.formats.folders.folder import FileBudget
from torchkeep.formats.folders.kinds import examine_folder
from torchkeep.identify import inspect
from torchkeep.identify.safety import judge
from torchkeep.pickles.limits import DEFAULT_LIMITS

ATTACK = b"cposix\nsystem\n(S'true'\ntR."


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network().state_dict(), path)


def told(contents: Contents) -> list[tuple[str, str, str]]:
    return [(item.rule, item.severity, item.text) for item in contents.findings]


# --- What is told of -----------------------------------------------------------------------------


def test_each_file_below_is_told_of_under_its_path(tmp_path: Path) -> None:
    save(tmp_path / "m.pth")
    save(tmp_path / "a" / "b" / "c" / "d" / "n.pth")
    (tmp_path / "a" / "notes.txt").write_text("nothing")
    contents = describe(tmp_path)
    assert list(contents.root) == ["m.pth", "a/b/c/d/n.pth"]
    assert contents.kind == "folder of 2 model files and 1 other file"
    assert contents.nbytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    names = [item.name for item in inspect(tmp_path).state_dicts]
    assert names == ["m.pth", "a/b/c/d/n.pth"]
    assert list(torchkeep.load(tmp_path)["a/b/c/d/n.pth"]) == list(network().state_dict())


def test_models_that_lie_deep_and_nowhere_else_are_met(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b" / "c" / "d" / "n.pth")
    assert describe(tmp_path).kind == "folder of 1 model file"


@pytest.mark.parametrize("hidden", ["a/b/c/d/x.pth", ".hidden/x", "__pycache__/x.bin"])
@pytest.mark.parametrize("sample", FOLDER_SAMPLES, ids=lambda sample: sample.name)
def test_what_does_harm_is_seen_below_a_folder_of_any_kind(
    sample: Sample, hidden: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    sample.write(folder)
    (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
    (folder / hidden).write_bytes(ATTACK)
    found = inspect(folder)
    assert found.safety.verdict == "dangerous"
    assert any(item.place.startswith(hidden) for item in found.contents.findings) or any(
        hidden in item.text for item in found.safety.findings
    )


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_trainer, "HF Trainer checkpoint at step 300 of 600"),
        (write_shards, "state dict in"),
        (write_run, "run of "),
        (write_deepspeed, "DeepSpeed checkpoint of step 500"),
        (write_hf_model, "model folder of TinyForImages"),
    ],
)
def test_a_folder_of_a_kind_of_its_own_is_described_as_that(
    write: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    save(tmp_path / "top.pth")
    (tmp_path / "x").mkdir()
    write(tmp_path / "x" / "inner")
    contents = describe(tmp_path)
    assert list(contents.root) == ["top.pth", "x/inner"]
    assert contents.members[1].kind.startswith(kind)
    assert contents.members[1].path == tmp_path / "x" / "inner"


def test_a_sharded_model_stays_what_it_is_beside_folders_within(tmp_path: Path) -> None:
    write_shards(tmp_path / "model")
    before = describe(tmp_path / "model")
    write_trainer(tmp_path / "model" / "checkpoint-300")
    save(tmp_path / "model" / "original" / "x.pth")
    contents = describe(tmp_path / "model")
    assert contents.container == before.container
    assert list(contents.root) == list(before.root)
    assert contents.kind == before.kind + ", with 1 checkpoint at step 300"
    more = [member.path.name for member in contents.members[len(before.members) :]]
    assert more == ["x.pth", "checkpoint-300"]


def test_the_checkpoints_of_a_run_are_counted_and_the_newest_is_named(tmp_path: Path) -> None:
    for step in (500, 1000):
        write_trainer(tmp_path / f"checkpoint-{step}")
        path = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": step}))
    assert describe(tmp_path).kind == "folder of 2 checkpoints, newest at step 1000"
    save(tmp_path / "final.pth")
    assert describe(tmp_path).kind == (
        "folder of 1 model file and 2 checkpoints, newest at step 1000"
    )
    write_hf_model(tmp_path / "final")
    (tmp_path / "final" / "config.json").rename(tmp_path / "config.json")
    assert describe(tmp_path).kind == (
        "model folder of TinyForImages, with 2 checkpoints, newest at step 1000"
    )


def test_the_older_checkpoints_of_deepspeed_are_members(tmp_path: Path) -> None:
    write_deepspeed(tmp_path)
    newest = tmp_path / "global_step500"
    older = tmp_path / "global_step400"
    older.mkdir()
    for path in newest.iterdir():
        (older / path.name).write_bytes(path.read_bytes())
    contents = describe(tmp_path)
    assert contents.kind.startswith("DeepSpeed checkpoint of step 500")
    assert contents.members[-1].path == older


def test_a_damaged_file_below_is_found(tmp_path: Path) -> None:
    save(tmp_path / "m.pth")
    save(tmp_path / "sub" / "cut.pth")
    cut = tmp_path / "sub" / "cut.pth"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert not torchkeep.verify(tmp_path).ok
    assert [item.place for item in torchkeep.verify(tmp_path).findings] == ["sub/cut.pth"]


def test_four_hundred_models_take_a_few_milliseconds_each(tmp_path: Path) -> None:
    save(tmp_path / "sub" / "0.pth")
    for number in range(1, 400):
        os.link(tmp_path / "sub" / "0.pth", tmp_path / "sub" / f"{number}.pth")
    with at_most(1000):
        found = inspect(tmp_path)
    assert found.summary.startswith("Folder of 400 model files: 400 state dicts, ")
    assert len(found.members) == 400
    assert found.safety.verdict == "data-only"


# --- What is left out ----------------------------------------------------------------------------


def test_what_is_too_deep_is_said_to_be_left_out(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefghijklmnop")
    save(deep / "m.pth")
    assert len(deep.relative_to(tmp_path).parts) == MOST_LEVELS
    assert judge(describe(tmp_path)).verdict == "data-only"
    save(deep / "q" / "m.pth")
    contents = describe(tmp_path)
    assert told(contents) == [
        (
            "not-looked-into",
            "ambiguous",
            "not looked into: 1 folder more than 16 levels deep: "
            "'a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q'",
        )
    ]
    assert judge(contents).verdict == "ambiguous"
    assert not torchkeep.verify(tmp_path).ok


def test_files_under_a_model_s_name_are_looked_into_first(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    save(tmp_path / "z" / "m.pth")
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(3))
    assert list(contents.root) == ["z/m.pth"]
    assert told(contents) == [
        (
            "not-looked-into",
            "ambiguous",
            "3 files were not looked into, since 2,000 files of a folder are at most: "
            "'2.jpg', '3.jpg', '4.jpg'",
        )
    ]


def test_folders_beyond_the_budget_are_said_to_be_left_out(tmp_path: Path) -> None:
    for name in "ab":
        write_hf_model(tmp_path / name)
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(1))
    texts = [text for rule, _, text in told(contents) if rule == "not-looked-into"]
    assert any(text.startswith("1 folder was not looked into") for text in texts)
    assert judge(contents).verdict == "ambiguous"


def test_no_model_among_what_was_looked_into_is_a_limit_and_not_an_answer(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(1))
    assert isinstance(contents.problem, LimitReached)
    assert str(contents.problem).startswith(
        f"{tmp_path}: no model was met in the folder; 2 files were not looked into"
    )


def test_more_names_than_are_listed_are_said_to_be_left_out(tmp_path: Path) -> None:
    save(tmp_path / "m.pth")
    for number in range(10):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / f"{number}.pth").write_bytes(b"")
    contents = examine_folder(tmp_path, DEFAULT_LIMITS, budget=FileBudget(names=5))
    assert list(contents.root) == ["m.pth"]
    assert told(contents)[0][2].startswith("sub and what follows: there are more than 200,000")


def test_a_version_control_s_folder_is_noted_and_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "m.pth")
    save(tmp_path / ".git" / "m.pth")
    contents = describe(tmp_path)
    assert list(contents.root) == ["m.pth"]
    assert told(contents) == [
        (
            "version-control",
            "note",
            "a version control system's own, and not looked into: '.git'",
        )
    ]


def test_a_save_of_ours_that_was_interrupted_is_no_damage_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    left = run / ".step-00000099.torchkeep-tmp-0123"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"\x00" * 20)
    assert torchkeep.verify(run).ok
    (left / "x.pkl").write_bytes(ATTACK)
    assert inspect(run).safety.verdict == "dangerous"


@pytest.mark.parametrize("where", ["x.pth", "deep/x.pth"])
def test_what_does_harm_in_any_checkpoint_of_a_run_is_seen(where: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    oldest = min(path for path in run.iterdir() if path.is_dir())
    (oldest / where).parent.mkdir(exist_ok=True)
    (oldest / where).write_bytes(ATTACK)
    assert inspect(run).safety.verdict == "dangerous"


def test_a_folder_that_can_not_be_listed_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m.pth")
    (tmp_path / "sub").mkdir()
    whole = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert told(describe(tmp_path)) == [
        ("unreadable-folder", "damaged", "the folder may not be listed")
    ]


# --- Links ---------------------------------------------------------------------------------------


def test_a_loop_of_links_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a" / "m.pth")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "latest").symlink_to("a")
    contents = describe(tmp_path)
    assert list(contents.root) == ["a/m.pth"]
    assert told(contents) == []


def test_a_link_that_models_hide_behind_is_told_of_and_not_followed(tmp_path: Path) -> None:
    write_loose(tmp_path / "top")
    save(tmp_path / "else" / "deep" / "m.pth")
    (tmp_path / "top" / "sub").mkdir()
    (tmp_path / "top" / "sub" / "link").symlink_to(tmp_path / "else")
    contents = describe(tmp_path / "top")
    assert told(contents) == [
        (
            "link-to-folder",
            "ambiguous",
            "models lie behind links to folders, which are not followed: 'sub/link'",
        )
    ]
    assert not torchkeep.verify(tmp_path / "top").ok
    (tmp_path / "else" / "deep" / "m.pth").rename(tmp_path / "else" / "notes.txt")
    assert told(describe(tmp_path / "top")) == []


def test_a_folder_with_nothing_but_a_link_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "else")
    assert isinstance(examine(tmp_path / "top").problem, NotAModelFile)
    save(tmp_path / "else" / "m.pth")
    assert judge(examine(tmp_path / "top")).verdict == "ambiguous"
