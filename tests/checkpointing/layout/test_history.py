"""Files that did not change since the checkpoint before: they are shared, and safely so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import torchkeep
from torchkeep.checkpointing import Checkpointer, capture, newest_whole
from torchkeep.checkpointing.layout import (
    damage,
    read_manifest,
    read_state,
    remove_checkpoint,
    write_checkpoint,
)
from torchkeep.checkpointing.layout.frozen import frozen_tensors
from torchkeep.checkpointing.state.encoding import encode, fingerprint

FROZEN = "model-00001-of-00002.safetensors"
REST = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
FACTS = {"epoch": 0, "batch": 0, "metrics": {}, "date": "2026-11-26", "inexact": []}


def network() -> nn.Sequential:
    """A model of which the first layer, of a MiB and a half, is frozen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(600, 600), nn.BatchNorm1d(600), nn.Linear(600, 2))
    net[0].requires_grad_(False)
    return net


class Run:
    """Saves checkpoints of a network, each after a change to its last layer."""

    def __init__(self, folder: Path, **others: object) -> None:
        self.folder = folder
        self.net = network()
        self.others = others
        self.saved: list[Path] = []

    def save(self, *, previous: Path | None = None) -> Path:
        with torch.no_grad():
            self.net[2].weight += 1
        step = len(self.saved)
        path = self.folder / f"step-{step:08d}"
        state = capture({"model": self.net, **self.others}, copy=False)
        facts = FACTS | {"step": step, "serial": step + 1}
        before = previous or (self.saved[-1] if self.saved else None)
        write_checkpoint(path, state, facts=facts, durable=False, previous=before)
        self.saved.append(path)
        return path


def inode(path: Path) -> int:
    return path.stat().st_ino


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def allocated(paths: Iterator[Path]) -> int:
    """Return the bytes that files take on the disk; a file of several names counts once."""
    return sum({inode(path): path.stat().st_blocks * 512 for path in paths}.values())


# --- What is shared ------------------------------------------------------------------------------


def test_a_file_of_frozen_parameters_is_written_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first, second = run.save(), run.save()
    assert inode(first / FROZEN) == inode(second / FROZEN)
    assert inode(first / REST) != inode(second / REST)
    assert damage(second) == ""
    assert fingerprint(read_state(second)) == fingerprint(capture({"model": run.net}))


def test_without_frozen_parameters_the_model_is_one_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.net.requires_grad_(True)
    assert not (run.save() / INDEX).exists()
    run.net[1].weight.requires_grad_(False)  # too small to be worth a file
    assert not (run.save() / INDEX).exists()
    run.net = nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 2))
    run.net.requires_grad_(False)  # nothing is left for a second file
    assert not (run.save() / INDEX).exists()
    assert (run.saved[-1] / "model.safetensors").exists()


def test_a_model_that_did_not_change_is_shared_even_if_nothing_is_frozen(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.net.requires_grad_(True)
    first = run.save()
    second = tmp_path / "again"
    state = capture({"model": run.net})
    facts = FACTS | {"step": 9, "serial": 9}
    write_checkpoint(second, state, facts=facts, durable=False, previous=first)
    assert inode(first / "model.safetensors") == inode(second / "model.safetensors")


def test_unfreezing_midway_changes_the_split_and_freezing_again_shares_again(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    run.save()
    run.net[0].weight.requires_grad_(True)
    second = run.save()
    assert {path.name for path in second.iterdir()} == {
        "model.safetensors",
        "state.safetensors",
        "manifest.json",
    }
    run.net[0].weight.requires_grad_(False)
    third, fourth = run.save(), run.save()
    assert inode(third / FROZEN) == inode(fourth / FROZEN)
    assert all(damage(path) == "" for path in run.saved)


CHANGES = {
    "a value": lambda net: net[0].weight.data[3, 3].add_(1),
    "the dtype": lambda net: net[0].to(torch.float64),
    "the shape": lambda net: setattr(net[0].weight, "data", net[0].weight.data.view(300, 1200)),
    "a name": lambda net: net[0].register_parameter("more", nn.Parameter(torch.ones(1), False)),
    "a sign of zero": lambda net: net[0].bias.data.neg_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changed_in_frozen_parameters_they_are_written_anew(tmp_path, change) -> None:
    run = Run(tmp_path)
    nn.init.zeros_(run.net[0].bias)
    first = run.save()
    change(run.net)
    second = run.save()
    assert inode(first / FROZEN) != inode(second / FROZEN)
    assert fingerprint(read_state(second)) == fingerprint(capture({"model": run.net}))


def test_frozen_parameters_of_other_objects_are_shared_too(tmp_path: Path) -> None:
    teachers = {1: network().requires_grad_(False), "two": [network()]}
    run = Run(tmp_path, extra={"teachers": teachers, "best": 0.5})
    first, second = run.save(), run.save()
    name = "state-frozen.safetensors"
    assert inode(first / name) == inode(second / name)
    assert read_state(second)["objects"]["extra"]["items"]["best"]["state"] == 0.5
    assert fingerprint(read_state(second)["objects"]) == fingerprint(
        capture({"model": run.net, **run.others})["objects"]
    )


def test_the_frozen_part_of_a_moving_average_stays_the_same(tmp_path: Path) -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    ema = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    run = Run(tmp_path, ema=ema)
    for _ in range(3):
        ema.update_parameters(net)
        run.save()
    name = "state-frozen.safetensors"
    assert len({inode(path / name) for path in run.saved}) == 1


def test_a_frozen_parameter_of_two_names_is_frozen_under_both() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight.requires_grad_(False)
    prefix = "objects/model/state/state_dict"
    assert frozen_tensors(*encode(capture({"model": net}, copy=False))) == {
        f"{prefix}/a.weight",
        f"{prefix}/b.weight",
    }


def test_a_tied_frozen_parameter_is_stored_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.net.append(nn.Linear(600, 600))
    run.net[3].weight = run.net[0].weight
    path = run.save()
    back = read_state(path)["objects"]["model"]["state"]["state_dict"]
    assert torch.equal(back["3.weight"], run.net[0].weight)
    assert (path / REST).stat().st_size < 100_000
    index = json.loads((path / INDEX).read_text())
    assert "3.weight" not in index["weight_map"]


# --- What anyone reads ---------------------------------------------------------------------------


def test_the_two_files_and_their_index_are_a_model_to_anyone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.save()
    index = json.loads((path / INDEX).read_text())
    expected = run.net.state_dict()
    assert list(index["weight_map"])
    assert index["weight_map"].keys() == expected.keys()
    found = {
        name: safetensors.torch.load_file(path / file)[name]
        for name, file in index["weight_map"].items()
    }
    assert all(torch.equal(found[name], item) for name, item in expected.items())
    assert index["metadata"]["total_size"] == sum(item.nbytes for item in expected.values())


def test_torchkeep_reads_such_a_folder_as_it_reads_any(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.save()
    expected = run.net.state_dict()
    for place in (path, path / INDEX):
        other = nn.Sequential(nn.Linear(600, 600), nn.BatchNorm1d(600), nn.Linear(600, 2))
        torchkeep.load_into(other, place)
        assert all(torch.equal(item, expected[name]) for name, item in other.state_dict().items())
        assert torchkeep.verify(place).state == "ok"
    assert torchkeep.load(path, select="model").keys() == expected.keys()
    found = torchkeep.inspect(path)
    assert [(item.name, item.num_tensors) for item in found.state_dicts] == [("model", 9)]
    assert found.integrity.ok
    report = torchkeep.convert(path, tmp_path / "model.safetensors", durable=False)
    assert report.num_tensors == 9
    (path / "manifest.json").unlink()
    assert torchkeep.load(path, select="model").keys() == expected.keys()


def test_a_damaged_index_is_found(tmp_path: Path) -> None:
    path = Run(tmp_path).save()
    text = (path / INDEX).read_text()
    (path / INDEX).write_text(text.replace('"2.bias": "model-00002', '"2.bias": "model-00001'))
    assert damage(path) == f"{INDEX} differs from what was written"
    found = torchkeep.verify(path)
    assert (found.state, found.findings[0].place) == ("damaged", INDEX)
    (path / INDEX).unlink()
    assert damage(path) == f"{INDEX} is missing"
    assert torchkeep.verify(path).state == "damaged"


# --- What can go wrong ---------------------------------------------------------------------------


def test_any_checkpoint_can_be_removed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(3):
        run.save()
    first, second, third = run.saved
    expected = [fingerprint(read_state(path)) for path in (second, third)]
    remove_checkpoint(first)
    assert [fingerprint(read_state(path)) for path in (second, third)] == expected
    remove_checkpoint(second)
    assert damage(third) == ""
    assert (third / FROZEN).stat().st_nlink == 1


def test_a_flipped_bit_damages_all_that_share_it_and_is_not_shared_further(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    run.save()
    second = run.save()
    with (second / FROZEN).open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)[0]
        file.seek(500_000)
        file.write(bytes([byte ^ 4]))
    text = f"{FROZEN}: tensor 0.weight differs from what was written"
    assert [damage(path) for path in run.saved] == [text] * 2
    third = run.save()
    assert inode(third / FROZEN) != inode(second / FROZEN)
    assert damage(third) == ""
    newest = newest_whole(tmp_path)
    assert (newest.checkpoint.path, newest.skipped) == (third, ())
    assert fingerprint(read_state(third)) == fingerprint(capture({"model": run.net}))


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    run = Run(tmp_path)
    run.save()
    monkeypatch.setattr(os, "link", refuse)
    second = run.save()
    assert damage(second) == ""
    assert (second / FROZEN).stat().st_nlink == 1


@pytest.mark.parametrize("how", ["removed", "without a manifest", "with a link in it"])
def test_a_previous_checkpoint_that_is_of_no_use_does_no_harm(tmp_path: Path, how: str) -> None:
    run = Run(tmp_path)
    first = run.save()
    if how == "removed":
        remove_checkpoint(first)
    elif how == "without a manifest":
        (first / "manifest.json").unlink()
    else:
        moved = (first / FROZEN).rename(tmp_path / "elsewhere")
        (first / FROZEN).symlink_to(moved)
    second = run.save()
    assert damage(second) == ""
    assert not (second / FROZEN).is_symlink()
    assert (second / FROZEN).stat().st_nlink == 1


def test_a_manifest_may_name_no_file_but_ours(tmp_path: Path) -> None:
    from torchkeep.errors import DamagedFile
    from torchkeep.formats.own.manifest import manifest_digest

    path = Run(tmp_path).save()
    manifest = read_manifest(path)
    for name in ("model-00003-of-00002.safetensors", "../model.safetensors", "manifest.json"):
        renamed = {
            field: {name if key == REST else key: item for key, item in manifest[field].items()}
            for field in ("files", "tensors", "tied")
        }
        wrong = manifest | renamed
        wrong["digest"] = manifest_digest(wrong)
        (path / "manifest.json").write_text(json.dumps(wrong))
        with pytest.raises(DamagedFile, match="its 'files' is not what a checkpoint has there"):
            read_manifest(path)


# --- A fine-tune ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is no exact checkpoint")
@pytest.mark.parametrize("is_in_background", [False, True])
def test_ten_checkpoints_of_a_fine_tune_take_little_more_than_one(
    tmp_path: Path, is_in_background: bool
) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    model.requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, 10)
    optimizer = torch.optim.AdamW(model.fc.parameters())
    head = sum(item.nbytes for item in model.fc.state_dict().values())
    with Checkpointer(
        tmp_path,
        model=model,
        optimizer=optimizer,
        every_epochs=None,
        keep_last=None,
        durable=False,
        background=is_in_background,
    ) as ckpt:
        for _ in range(10):
            # The statistics of a backbone in training mode change; they are no parameters.
            for buffer in model.buffers():
                buffer += 1
            optimizer.zero_grad()
            model.fc(torch.randn(2, 2048)).sum().backward()
            optimizer.step()
            ckpt.step()
            ckpt.save(wait=False)
    assert len(list(tmp_path.glob("step-*"))) == 10
    one = allocated(files(ckpt.last_saved))
    assert allocated(files(tmp_path)) <= 1.2 * (one + 10 * head)
    assert damage(ckpt.last_saved) == ""
    saved = read_state(ckpt.last_saved)["objects"]["model"]["state"]["state_dict"]
    assert all(torch.equal(saved[name], item) for name, item in model.state_dict().items())
