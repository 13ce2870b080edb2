"""A checkpoint on disk: written whole, readable by anyone, and any damage is found."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import safetensors.torch
import torch
from torch import nn

from releases import TOO_DEEP
from torchkeep.checkpointing import capture, list_checkpoints, newest_whole
from torchkeep.checkpointing.layout import (
    damage,
    read_manifest,
    read_state,
    write_checkpoint,
    write_part,
)
from torchkeep.checkpointing.state.encoding import encode, fingerprint
from torchkeep.checkpointing.state.sharded import Part
from torchkeep.errors import (
    CheckpointProblem,
    DamagedFile,
    FileMissing,
    NoCheckpoint,
    SaveRefused,
    UnsupportedContent,
)
from torchkeep.formats.own.manifest import folder_name, manifest_digest

FACTS = {
    "serial": 1,
    "step": 1,
    "epoch": 0,
    "batch": 1,
    "metrics": {"loss": math.nan},
    "date": "2026-11-23T00:00:00+00:00",
    "inexact": [],
}


def write(run, step: int, *, serial: int = 0, name: str = ""):
    torch.manual_seed(step)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = capture({"model": model, "optimizer": optimizer})
    facts = FACTS | {"serial": serial or step, "step": step, "batch": step}
    folder = run / (name or folder_name(step))
    write_checkpoint(folder, state, facts=facts, durable=False)
    return folder, state, model


def test_the_state_comes_back_bit_for_bit(tmp_path):
    folder, state, _ = write(tmp_path, 1)
    assert fingerprint(read_state(folder)) == fingerprint(state)
    assert fingerprint(read_state(folder, mmap=True)) == fingerprint(state)
    assert damage(folder) == ""


def test_the_model_file_is_plain_safetensors(tmp_path):
    folder, _, model = write(tmp_path, 1)
    loaded = safetensors.torch.load_file(folder / "model.safetensors")
    nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).load_state_dict(loaded)
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_tied_parameters_come_back(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    state = capture({"model": model}, copy=False)
    write_checkpoint(tmp_path / "c", state, facts=FACTS, durable=False)
    back = read_state(tmp_path / "c")["objects"]["model"]["state"]["state_dict"]
    assert torch.equal(back["b.weight"], model["a"].weight)
    assert torch.equal(back["a.weight"], model["a"].weight)


def test_a_name_that_is_taken_is_refused(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(SaveRefused, match="there is something already"):
        write(tmp_path, 1)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(SaveRefused, match=r"metadata/a is a builtins\.object"):
        write_checkpoint(tmp_path / "c", {}, facts={"a": object()})
    with pytest.raises(SaveRefused, match="on the meta device"):
        write_checkpoint(tmp_path / "c", {"t": torch.ones(1, device="meta")}, facts={})
    assert list(tmp_path.iterdir()) == []


FILES = ("model.safetensors", "state.safetensors", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "truncate", "missing", "empty"])
def test_the_newest_is_named_and_skipped_if_it_is_damaged(tmp_path, name, how):
    write(tmp_path, 1)
    folder, _, _ = write(tmp_path, 2)
    path = folder / name
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
    elif how == "truncate":
        path.write_bytes(data[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    found = newest_whole(tmp_path)
    assert found.checkpoint.step == 1
    assert [item.path.name for item in found.skipped] == ["step-00000002"]
    assert name in found.skipped[0].problem
    with pytest.raises((DamagedFile, FileMissing), match=name):
        read_state(folder)


def test_any_flipped_bit_of_a_manifest_is_found_or_harmless(tmp_path):
    folder, _, _ = write(tmp_path, 1)
    path = folder / "manifest.json"
    data = path.read_bytes()
    whole = read_manifest(folder)
    for position in range(0, len(data), max(len(data) // 150, 1)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            assert read_manifest(folder) == whole
        except DamagedFile:
            continue


def test_a_flipped_bit_in_any_tensor_is_found_by_its_name(tmp_path):
    folder, state, _ = write(tmp_path, 1)
    path = folder / "model.safetensors"
    clean = path.read_bytes()
    header = json.loads(clean[8 : 8 + int.from_bytes(clean[:8], "little")])
    start = 8 + int.from_bytes(clean[:8], "little")
    names = [name for name in header if name != "__metadata__"]
    assert len(names) == len(state["objects"]["model"]["state"]["state_dict"])
    for name in names:
        data = bytearray(clean)
        data[start + header[name]["data_offsets"][0]] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match=f"tensor {name} differs from what was written"):
            read_state(folder)
        expected = f"model.safetensors: tensor {name} differs from what was written"
        assert damage(folder) == expected


@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_what_is_written_in_the_background_is_the_same_bytes(tmp_path, suffix):
    model = nn.Sequential(nn.Linear(900, 800), nn.BatchNorm1d(800), nn.Linear(800, 7))
    tensors, structure = encode(capture({"model": model}))
    paths = [tmp_path / place / f"step-00000001{suffix}" for place in ("a", "b")]
    for path, background in zip(paths, (False, True), strict=True):
        path.parent.mkdir()
        write_part(path, Part(tensors, structure), facts=FACTS, background=background)
    first, second = (
        {file.name: file.read_bytes() for file in (path.iterdir() if not suffix else [path])}
        for path in paths
    )
    assert first == second


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    with pytest.raises(NoCheckpoint, match="there is no checkpoint"):
        newest_whole(tmp_path)
    folder, _, _ = write(tmp_path, 7)
    (folder / "manifest.json").unlink()
    with pytest.raises(
        NoCheckpoint, match=r"every checkpoint is damaged \(step-00000007: manifest.json is missing"
    ):
        newest_whole(tmp_path)


def test_a_manifest_of_another_version_is_refused(tmp_path):
    folder, _, _ = write(tmp_path, 1)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(UnsupportedContent, match="it has version 99, and this torchkeep reads 3"):
        read_manifest(folder)
    with pytest.raises(CheckpointProblem, match="may be the newest, and can't be read"):
        newest_whole(tmp_path)  # to go on from an older one would lose what it has
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "1"}))
    with pytest.raises(DamagedFile, match="it has version '1'"):
        read_manifest(folder)
    path.write_text("{}")
    with pytest.raises(DamagedFile, match="it is not the manifest of a checkpoint"):
        read_manifest(folder)
    path.write_text("{")
    with pytest.raises(DamagedFile, match="it is no valid JSON"):
        read_manifest(folder)


NO_MANIFESTS = {
    "deep": ("[" * 100_000, "it is nested too deeply"),
    "deep with an end": ('{"a":' * 50_000 + "1" + "}" * 50_000, "it is nested too deeply"),
    "a huge number": ("1" * 5000, "it is no valid JSON"),
    "a list": ("[1, 2]", "it is not the manifest of a checkpoint"),
    "a text": ('"torchkeep checkpoint"', "it is not the manifest of a checkpoint"),
    "a key twice": ('{"format": "a", "format": "torchkeep checkpoint"}', "a key stands twice"),
    "null": ("null", "it is not the manifest of a checkpoint"),
    "not UTF-8": (b"\xff\xfe\xff", "it is no valid JSON"),
    "a huge version": (
        json.dumps({"format": "torchkeep checkpoint", "version": 10**4000}),
        "it has version 1000",
    ),
}


@pytest.mark.parametrize(("text", "problem"), NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_a_manifest_that_is_none_is_named_and_skipped(tmp_path, text, problem):
    write(tmp_path, 1)
    folder, _, _ = write(tmp_path, 2)
    path = folder / "manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedFile, match=problem) as caught:
        read_manifest(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 200
    found = newest_whole(tmp_path)
    assert found.checkpoint.step == 1
    assert problem in found.skipped[0].problem


WRONG_FIELDS = [
    ("files", []),
    ("files", {"model.safetensors": 5}),
    ("files", {"model.safetensors": {"nbytes": "many", "digest": ""}}),
    ("files", {"../../secret": {"nbytes": 1, "digest": ""}}),
    ("tensors", None),
    ("tensors", {"model.safetensors": ["weight"]}),
    ("tensors", {"model.safetensors": {"weight": 5}}),
    ("tied", {"model.safetensors": None}),
    ("structure", []),
    ("serial", True),
    ("step", 1.5),
    ("step", -1),
    ("epoch", "first"),
    ("batch", None),
    ("metrics", []),
    ("date", 2026),
    ("inexact", [1]),
]


def rewrite(folder, **fields: object) -> None:
    """Change fields of a manifest, so that only its digest would not tell."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(manifest | {"digest": manifest_digest(manifest)}))


@pytest.mark.parametrize(("name", "value"), WRONG_FIELDS)
def test_a_field_of_the_wrong_kind_is_named_and_the_checkpoint_skipped(tmp_path, name, value):
    write(tmp_path, 1)
    folder, _, _ = write(tmp_path, 2)
    rewrite(folder, **{name: value})
    with pytest.raises(DamagedFile, match=rf"manifest.json: its '{name}' is not what a check"):
        read_manifest(folder)
    assert newest_whole(tmp_path).checkpoint.step == 1


def test_what_can_not_be_put_together_is_a_damaged_checkpoint(tmp_path):
    write(tmp_path, 1)
    folder, _, _ = write(tmp_path, 2)
    rewrite(folder, metrics={"loss": {"$": "nonsense"}})
    assert "the state can't be put together" in newest_whole(tmp_path).skipped[0].problem
    rewrite(folder, metrics={}, tied={})
    with pytest.raises(DamagedFile, match="'files', 'tensors' and 'tied' name different files"):
        read_manifest(folder)


def test_a_structure_that_is_nested_too_deeply_is_a_damaged_checkpoint(tmp_path):
    folder, _, _ = write(tmp_path, 1)
    deep: list[object] = []
    for _ in range(TOO_DEEP):
        deep = [deep]
    rewrite(folder, structure={"deep": deep})
    with pytest.raises(DamagedFile, match=r"manifest\.json: its structure is nested too deeply"):
        read_state(folder)


def test_checkpoints_are_listed_in_the_order_of_saving(tmp_path):
    write(tmp_path, 5, serial=3)
    write(tmp_path, 9, serial=2)
    write(tmp_path, 5, serial=4, name=folder_name(5, 2))
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-00000003").write_text("not a folder")
    found = list_checkpoints(tmp_path)
    assert [item.path.name for item in found] == [
        "step-00000009",
        "step-00000005",
        "step-00000005-2",
    ]
    assert math.isnan(found[0].metrics["loss"])
    assert found[0].nbytes == sum(file.stat().st_size for file in found[0].path.iterdir())
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_checkpoint_may_be_copied_elsewhere(tmp_path):
    folder, state, _ = write(tmp_path, 1)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(read_state(tmp_path / "elsewhere")) == fingerprint(state)
