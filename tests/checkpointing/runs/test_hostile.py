"""A run's folder from a stranger gives clear errors, and takes neither memory nor time."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from made_runs import change_manifest, make_run
from torchkeep.checkpointing import Checkpointer, list_checkpoints, newest_whole, prune
from torchkeep.checkpointing.layout import damage, read_manifest, read_state
from torchkeep.checkpointing.runs.overview import look_at_run
from torchkeep.errors import DamagedFile, TorchkeepError
from torchkeep.formats.own.manifest import manifest_digest


def nested(depth: int):
    value = 1
    for _ in range(depth):
        value = {"$": "tuple", "items": [value]}
    return value


METRICS = {
    "a text": {"val_loss": "a"},
    "a list": {"val_loss": [1]},
    "nothing": {"val_loss": None},
    "true": {"val_loss": True},
    "a huge number": {"val_loss": 10**400},
    "a device": {"val_loss": {"$": "device", "name": "bogus"}},
    "a dtype": {"val_loss": {"$": "dtype", "name": "foo"}},
    "a size": {"val_loss": {"$": "size", "items": ["a"]}},
    "a long deque": {"val_loss": {"$": "deque", "items": [], "maxlen": 10**30}},
    "a deep tuple": {"val_loss": nested(360)},
    "bytes": {"$": "bytes", "hex": "00"},
    "a tensor": {"val_loss": {"$": "tensor", "name": "x"}},
}


@pytest.mark.parametrize("metrics", METRICS.values(), ids=METRICS.keys())
def test_whatever_a_manifest_has_for_metrics_the_other_checkpoints_are_used(tmp_path, metrics):
    run = make_run(tmp_path, [0.1, 0.2, 0.3], keep_best=("val_loss", "min"))
    change_manifest(run / "step-00000003", metrics=metrics)
    found = look_at_run(run, best=("val_loss", "min"))
    assert [item.step for item in found.checkpoints][:2] == [1, 2]
    assert newest_whole(run).checkpoint.step in (2, 3)
    prune(run, keep_last=1, keep_best=("val_loss", "min"))
    make_run(run, [0.1, 0.2, 0.3, 0.4], keep_best=("val_loss", "min"), keep_last=1)
    assert (run / "step-00000004").is_dir()
    assert (run / "step-00000001").is_dir()  # the best


@pytest.mark.skipif(os.name == "nt", reason="needs sparse files")
def test_a_manifest_that_is_a_disk_long_is_not_read(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    os.truncate(run / "step-00000002" / "manifest.json", 200 << 30)
    first, second = list_checkpoints(run)
    assert (first.problem, first.step) == ("", 1)
    assert "which no manifest has" in second.problem


def test_a_file_of_tensors_that_is_another_kind_of_file_is_damaged(tmp_path):
    run = make_run(tmp_path, [0.1])
    checkpoint = run / "step-00000001"
    torch.save({"a": 1}, checkpoint / "model.safetensors")
    files = read_manifest(checkpoint)["files"]
    files["model.safetensors"]["nbytes"] = (checkpoint / "model.safetensors").stat().st_size
    change_manifest(checkpoint, files=files)
    assert "it is not the safetensors file" in damage(checkpoint)
    with pytest.raises(DamagedFile, match="it is not the safetensors file"):
        read_state(checkpoint)


@pytest.mark.parametrize("part", ["objects", "rng", "inexact", "progress", "data"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_state_that_is_not_a_runs_is_refused_before_anything_changes(tmp_path, part, value):
    run = make_run(tmp_path, [0.1])
    manifest = read_manifest(run / "step-00000001")
    manifest["structure"][part] = value
    if value is None:
        del manifest["structure"][part]
    change_manifest(run / "step-00000001", structure=manifest["structure"])
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = Checkpointer(run, model=model, optimizer=optimizer, allow_inexact=True)
    with pytest.raises(TorchkeepError, match=r"not what a run's checkpoint has|put together"):
        ckpt.restore()
    assert torch.equal(model.weight, before)


def test_a_manifest_without_its_environment_is_as_good(tmp_path):
    run = make_run(tmp_path, [0.1])
    path = run / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["environment"]
    manifest["digest"] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    make_run(run, [0.1, 0.2])
    assert (run / "step-00000002").is_dir()


def test_counts_that_no_run_reaches_are_damage(tmp_path):
    run = make_run(tmp_path, [0.1, 0.2])
    change_manifest(run / "step-00000002", serial=2**53)
    assert "'serial'" in list_checkpoints(run)[-1].problem


def test_a_file_that_may_not_be_read_is_no_reason_to_go_on_from_an_older_checkpoint(
    tmp_path, monkeypatch
):
    run = make_run(tmp_path, [0.1, 0.2])
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "step-00000002" not in str(path) and real(path, mode)
    )
    with pytest.raises(TorchkeepError, match=r"may be the newest, and .* may not be"):
        newest_whole(run)
