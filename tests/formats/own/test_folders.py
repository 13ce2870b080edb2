"""A checkpoint and a run of ours, described without torch as what they are."""

from __future__ import annotations

import json
import math
import shutil
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from formats.comparing_trees import assert_same, read
from formats.samples_folders import network, write_run
from releases import TOO_DEEP
from torchkeep.checkpointing import capture, newest_whole
from torchkeep.checkpointing.layout import write_checkpoint
from torchkeep.contents import Contents, DictObject, Global
from torchkeep.errors import DamagedFile
from torchkeep.formats import describe, examine
from torchkeep.formats.own.manifest import manifest_digest
from torchkeep.identify import inspect

FACTS = {
    "serial": 1,
    "step": 7,
    "epoch": 2,
    "batch": 1,
    "metrics": {"loss": math.nan},
    "date": "2026-11-23T00:00:00+00:00",
    "inexact": [],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, write_run(folder)


@pytest.fixture
def run(written: tuple[Path, Any], tmp_path: Path) -> Path:
    shutil.copytree(written[0], tmp_path / "digits")
    return tmp_path / "digits"


def told(contents: Contents) -> list[tuple[str, str]]:
    return [(item.rule, item.severity) for item in contents.findings]


def rewrite(folder: Path, **fields: Any) -> None:
    """Change fields of a manifest, so that only its digest would not tell; it does."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(manifest | {"digest": manifest_digest(manifest)}))


# --- A checkpoint --------------------------------------------------------------------------------


def test_a_checkpoint_has_its_facts_its_objects_and_the_rest_of_the_state(
    written: tuple[Path, Any],
) -> None:
    folder, held = written
    contents = describe(folder / "step-00000012")
    root = contents.root
    assert contents.container == "torchkeep-checkpoint"
    assert contents.kind.startswith("checkpoint of a torchkeep run at step 12, epoch 3, saved 20")
    assert (root["step"], root["epoch"], list(root["metrics"])) == (12, 3, ["loss"])
    assert root["versions"]["torch"] == torch.__version__
    assert root["optimizer"]["class"] == "AdamW"
    assert_same(root["model"], held["model"], folder)
    assert_same(root["scheduler"], held["scheduler"], folder)
    assert root["extra"] == {"counts": {"seen": 5}}
    assert root["rng"]["torch"].shape == torch.get_rng_state().shape
    assert root["progress"]["history"] == [{"epoch": 2, "step": 12, **root["metrics"]}]


def test_inspect_shows_the_optimizer_the_scheduler_and_how_far_it_is(
    written: tuple[Path, Any],
) -> None:
    for path in (written[0], written[0] / "step-00000012"):
        found = inspect(path)
        assert [item.name for item in found.state_dicts] == ["model"]
        assert [(item.name, item.family) for item in found.optimizers] == [("optimizer", "AdamW")]
        assert found.optimizers[0].param_groups[0]["lr"] == 0.125 * 0.1
        assert found.schedulers == ("scheduler",)
        assert (found.values["step"], found.values["epoch"]) == (12, 3)
        assert (found.role, found.safety.verdict) == ("checkpoint", "data-only")
        assert found.integrity.ok


def test_the_files_of_a_checkpoint_are_its_members(written: tuple[Path, Any]) -> None:
    contents = describe(written[0] / "step-00000012")
    assert [member.path.name for member in contents.members] == [
        "model.safetensors",
        "state.safetensors",
    ]
    assert contents.nbytes == sum(path.stat().st_size for path in (contents.path).iterdir())


def test_every_kind_of_value_is_read_as_what_it_was(tmp_path: Path) -> None:
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    tied.register_buffer("cache", torch.ones(2), persistent=False)
    values = {
        "tuple": (1, (2.5, None)),
        "keys": {1: "a", (2, "b"): "c"},
        "large": 1 << 70,
        "inf": -math.inf,
        "complex": 1 + 2j,
        "bytes": b"\0\xff",
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "set": {1, 2},
        "frozen": frozenset({3}),
        "deque": deque([1, 2], maxlen=5),
        "ordered": OrderedDict(x=1),
        "tensor": torch.arange(3),
    }
    state = capture({"model": tied, "extra": {"v": values, "more": network()}}, copy=False)
    write_checkpoint(tmp_path / "step-00000007", state, facts=FACTS, durable=False)
    contents = describe(tmp_path / "step-00000007")
    assert told(contents) == []
    root = contents.root
    assert math.isnan(root["metrics"]["loss"])
    assert root["model"]["a.weight"] is root["model"]["b.weight"]
    assert list(root["model_other_buffers"]) == ["cache"]
    found = root["extra"]["v"]
    assert read(found.pop("tensor"), tmp_path).tolist() == [0, 1, 2]
    assert isinstance(found["ordered"], DictObject)
    assert found == {
        **{key: value for key, value in values.items() if key != "tensor"},
        "dtype": Global("torch", "bfloat16"),
        "device": "cpu",
        "size": (2, 3),
        "deque": [1, 2],
        "ordered": {"x": 1},
    }
    assert_same(root["extra"]["more"], dict(network().state_dict()), tmp_path)


@pytest.mark.parametrize("how", ["missing", "cut", "flipped", "of another version"])
def test_a_checkpoint_without_a_usable_manifest_still_shows_its_model(
    how: str, run: Path, written: tuple[Path, Any]
) -> None:
    folder = run / "step-00000012"
    path = folder / "manifest.json"
    text = path.read_text()
    changed = {
        "missing": None,
        "cut": text[:-10],
        "flipped": text.replace('"step": 12', '"step": 13'),
        "of another version": text.replace('"version": 2', '"version": 9'),
    }[how]
    if changed is None:
        path.unlink()
    else:
        path.write_text(changed)
    contents = describe(folder)
    assert told(contents) == [("manifest", "damaged")]
    assert contents.findings[0].text.startswith("the manifest is ")
    assert contents.kind == "checkpoint of a torchkeep run without its manifest"
    assert_same(contents.root, {"model": written[1]["model"]}, folder)


def test_a_checkpoint_with_a_missing_or_broken_file_shows_the_rest(run: Path) -> None:
    folder = run / "step-00000012"
    (folder / "state.safetensors").unlink()
    contents = describe(folder)
    assert told(contents)[:2] == [("file-size", "damaged"), ("missing-tensor", "damaged")]
    assert contents.findings[0].text == "state.safetensors is missing"
    assert contents.root["step"] == 12
    assert "0.weight" in contents.root["model"]
    (folder / "model.safetensors").write_bytes(b"gone")
    contents = describe(folder)
    assert "model.safetensors has 4 bytes instead of " in contents.findings[0].text
    (folder / "model.safetensors").unlink()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DamagedFile, match="the manifest is unusable"):
        describe(folder)


def test_another_kind_of_file_under_the_models_name_has_none_of_its_tensors(run: Path) -> None:
    checkpoint = run / "step-00000012"
    torch.save(torch.ones(3), checkpoint / "model.safetensors")
    contents = examine(checkpoint)
    assert ("missing-tensor", "damaged") in told(contents)


def test_a_tensor_too_many_or_too_few_is_named(run: Path) -> None:
    folder = run / "step-00000012"
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = manifest["tensors"]
    digest = tensors["model.safetensors"].pop("0.weight")
    tensors["model.safetensors"]["new.weight"] = digest
    rewrite(folder, tensors=tensors)
    contents = describe(folder)
    assert ("missing-tensor", "damaged") in told(contents)
    assert ("extra-tensor", "damaged") in told(contents)
    assert ("structure", "damaged") in told(contents)
    assert "0.weight" in contents.root["model"]


STRUCTURES: dict[str, Any] = {
    "an unknown kind": {"objects": {"$": "nonsense"}},
    "no items": {"objects": {"$": "tuple"}},
    "a key that can't be one": {"objects": {"$": "dict", "items": [[[1], 2]]}},
    "a pair of three": {"objects": {"$": "dict", "items": [[1, 2, 3]]}},
    "a tensor that is none": {"objects": {"$": "tensor", "name": "gone"}},
    "a name that is none": {"objects": {"$": "tensor", "name": ["x"]}},
    "bits that are none": {"objects": {"$": "float", "bits": "zz"}},
    "an integer that is none": {"objects": {"$": "int", "hex": "x"}},
    "a kind that is a list": {"objects": {"$": []}},
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_a_structure_that_makes_no_sense_is_a_finding(structure: Any, run: Path) -> None:
    folder = run / "step-00000012"
    rewrite(folder, structure=structure)
    contents = describe(folder)
    assert told(contents) == [("structure", "damaged")]
    assert contents.findings[0].text.startswith("the state can't be put together (")
    assert contents.root["step"] == 12
    assert "0.weight" in contents.root["model"]


@pytest.mark.parametrize(
    "structure",
    [{"objects": 5}, {"objects": {"model": 5, "x": {"kind": 5}, "y": {"kind": "module"}}}, {}],
)
def test_a_structure_of_other_values_is_shown_as_it_is(structure: Any, run: Path) -> None:
    folder = run / "step-00000012"
    rewrite(folder, structure=structure)
    assert describe(folder).root["step"] == 12


def test_a_structure_that_is_nested_too_deeply_is_a_finding(run: Path) -> None:
    deep: Any = []
    for _ in range(TOO_DEEP):
        deep = [deep]
    rewrite(run / "step-00000012", structure={"deep": deep})
    contents = describe(run / "step-00000012")
    assert told(contents) == [("structure", "damaged")]
    assert "nested too deeply" in contents.findings[0].text


def test_files_that_we_did_not_write_are_noted_and_looked_into(run: Path) -> None:
    folder = run / "step-00000012"
    (folder / "notes.txt").write_text("x")
    contents = describe(folder)
    assert told(contents) == [("extra-file", "note")]
    assert contents.findings[0].text == "1 files in it are not torchkeep's: 'notes.txt'"
    (folder / "hidden").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert inspect(folder).safety.verdict == "dangerous"
    assert "0.weight" in describe(folder).root["model"]


# --- A run ---------------------------------------------------------------------------------------


def test_a_run_is_its_newest_checkpoint_and_lists_the_others(written: tuple[Path, Any]) -> None:
    folder, held = written
    contents = describe(folder)
    assert contents.container == "torchkeep-run"
    assert contents.kind == "run of 3 checkpoints, newest step 12"
    assert_same(contents.root["model"], held["model"], folder)
    rows = [(item.path.name, item.root["step"], item.root["epoch"]) for item in contents.members]
    assert rows == [
        ("step-00000004", 4, 1),
        ("step-00000008", 8, 2),
        ("step-00000012", 12, 3),
    ]
    assert all(list(item.root["metrics"]) == ["loss"] for item in contents.members)
    assert all(item.root["date"].startswith("20") for item in contents.members)
    assert contents.nbytes > sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_told_of(run: Path) -> None:
    path = run / "step-00000012" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    contents = describe(run)
    assert contents.kind == "run of 3 checkpoints, newest step 8"
    assert contents.root["step"] == 8
    assert [(item.rule, item.place) for item in contents.findings] == [
        ("checkpoint", "step-00000012")
    ]
    assert "state.safetensors has " in contents.findings[0].text
    (run / "step-00000008" / "manifest.json").unlink()
    (run / "step-00000004" / "manifest.json").write_text("{}")
    with pytest.raises(DamagedFile, match="none of the run's checkpoints is whole"):
        describe(run)
    assert examine(run).kind == "run of 3 checkpoints, none of them whole"


def test_newest_is_the_one_that_was_saved_last(tmp_path: Path) -> None:
    state = capture({"model": network()})
    for step, serial in ((5, 2), (9, 1)):
        facts = FACTS | {"step": step, "serial": serial}
        write_checkpoint(tmp_path / f"step-{step:08d}", state, facts=facts, durable=False)
    contents = describe(tmp_path)
    assert contents.root["step"] == 5
    assert [item.path.name for item in contents.members] == ["step-00000009", "step-00000005"]


def test_what_the_checkpointer_resumes_from_is_what_a_run_shows(run: Path) -> None:
    assert newest_whole(run).checkpoint.step == describe(run).root["step"] == 12
    (run / "step-00000012" / "model.safetensors").unlink()
    assert newest_whole(run).checkpoint.step == describe(run).root["step"] == 8


def test_a_pickle_beside_the_checkpoints_of_a_run_is_seen(run: Path) -> None:
    (run / "hidden").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert inspect(run).safety.verdict == "dangerous"
    assert describe(run).kind == "run of 3 checkpoints, newest step 12"


def test_of_a_long_run_the_latest_checkpoints_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchkeep.formats.own.folders._MOST_CHECKPOINTS", 2)
    state = capture({"model": network()})
    for step in (1, 2, 3):
        facts = FACTS | {"step": step, "serial": step}
        write_checkpoint(tmp_path / f"step-{step:08d}", state, facts=facts, durable=False)
    contents = describe(tmp_path)
    assert len(contents.members) == 2
    assert contents.findings[0].text == "only the last 2 of its 3 checkpoints were looked at"
