"""rescue: weights, structure and source texts out of whole models whose classes are gone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import torchkeep
from loading.whole.networks import Block, Net, tokens
from torchkeep.contents import Global, Object
from torchkeep.errors import DamagedFile, FileMissing, LimitReached, LoadMismatch, SaveRefused
from torchkeep.formats.own.metadata import STRUCTURE
from torchkeep.formats.own.whole import Structure, write_structure
from torchkeep.pickles.limits import Limits
from torchkeep.rescuing import rescue
from torchkeep.saving import save, write_safetensors


def saved(model: nn.Module, path: Path) -> Path:
    if path.stem == "ours":
        save(model, path, whole=True)
    else:
        torch.save(model, path, _use_new_zipfile_serialization=path.stem == "zip")
    return path


@pytest.fixture(params=["ours.safetensors", "ours.pth", "zip.pt", "legacy.pt"])
def gone(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, nn.Module]:
    """Return a file whose classes can't be imported, and the model that is in it."""
    model = Net()
    path = saved(model, tmp_path / request.param)
    monkeypatch.setitem(sys.modules, "loading.whole.networks", None)
    return path, model


def test_weights_are_a_plain_state_dict_of_the_live_models_names(
    gone: tuple[Path, nn.Module], tmp_path: Path
):
    path, model = gone
    report = rescue(path, tmp_path / "out")
    state = load_file(tmp_path / "out" / "weights.safetensors")
    assert set(state) <= set(model.state_dict())
    again = Net()
    torchkeep.load_into(again, tmp_path / "out" / "weights.safetensors")
    assert torch.equal(again(tokens()), model(tokens()))
    beside = load_file(tmp_path / "out" / "other-tensors.safetensors")
    assert torch.equal(beside["block.positions"], model.block.positions)
    (found,) = report.models
    assert (found.name, found.class_path) == ("", "loading.whole.networks.Net")
    assert found.num_tensors == len(model.state_dict())
    assert found.num_parameters == sum(item.numel() for item in model.parameters())
    assert str(report) == (
        f"{tmp_path / 'out'}: loading.whole.networks.Net, 120 parameters in 8 tensors, "
        f"{len(found.sources)} source texts"
    )


def test_the_structure_is_told_for_people_and_for_programs(
    gone: tuple[Path, nn.Module], tmp_path: Path
):
    path, _ = gone
    rescue(path, tmp_path / "out")
    lines = (tmp_path / "out" / "structure.txt").read_text().splitlines()
    assert lines[:2] == [
        "Net(labels={cat: 0, dog: 1})",
        "  (embed): Embedding(num_embeddings=11, embedding_dim=6, norm_type=2.0), 66 parameters",
    ]
    form = json.loads((tmp_path / "out" / "structure.json").read_text())
    assert form["class"] == "loading.whole.networks.Net"
    embed = form["children"][0]
    assert (embed["name"], embed["attributes"]["num_embeddings"]) == ("embed", 11)
    assert embed["parameters"]["weight"]["shape"] == [11, 6]


def test_source_texts_are_kept_as_text(gone: tuple[Path, nn.Module], tmp_path: Path):
    path, _ = gone
    report = rescue(path, tmp_path / "out")
    folder = tmp_path / "out" / "sources"
    if path.stem == "zip":  # only our files and those before PyTorch 1.6 have any
        assert not folder.exists()
        return
    assert {"loading.whole.networks.Net", "loading.whole.networks.Block"} <= {
        *report.models[0].sources
    }
    assert "class Block(nn.Module):" in (folder / "loading.whole.networks.Block.py").read_text()


def test_a_readme_says_what_is_what_and_how_to_go_on(gone: tuple[Path, nn.Module], tmp_path: Path):
    path, _ = gone
    rescue(path, tmp_path / "out")
    text = (tmp_path / "out" / "README.txt").read_text()
    assert text.startswith(f"Rescued from {path}, running nothing of it.\n\nweights.safetensors: ")
    assert "    model = Net(...)\n    torchkeep.load_into(model, 'weights.safetensors')\n" in text
    assert "other-tensors.safetensors: buffers that a state dict leaves out.\n" in text
    assert "    loading.whole.networks.Block\n" in text
    assert ("read before you run one" in text) is (path.stem != "zip")


def test_each_model_of_a_checkpoint_has_a_folder(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 1, "model": nn.Linear(1, 2), "../x/ema": nn.Linear(1, 2)}, path)
    report = rescue(path, tmp_path / "out")
    assert [model.folder for model in report.models] == [
        tmp_path / "out" / "model",
        tmp_path / "out" / "x_ema",
    ]
    assert (tmp_path / "out" / "x_ema" / "weights.safetensors").exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["checkpoint.pt", "out"]
    readme = (tmp_path / "out" / "model" / "README.txt").read_text()
    assert readme.startswith(f"Rescued from {path} under 'model', running nothing of it.")


def test_models_whose_names_differ_in_signs_alone_have_folders_of_their_own(tmp_path: Path):
    models = {"a b": nn.Linear(1, 1), "a_b": nn.Linear(2, 2), "A/b": nn.Linear(3, 3)}
    torch.save(models, tmp_path / "three.pt")
    report = rescue(tmp_path / "three.pt", tmp_path / "out")
    assert [model.folder.name for model in report.models] == ["a_b", "a_b-2", "A_b-3"]
    for item, model in zip(report.models, models.values(), strict=True):
        assert load_file(item.folder / "weights.safetensors")["bias"].equal(model.bias)


def test_tensors_that_safetensors_has_no_form_for_are_named(tmp_path: Path):
    model = nn.Linear(2, 2)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    torch.save(model, tmp_path / "model.pt")
    report = rescue(tmp_path / "model.pt", tmp_path / "out")
    assert report.models[0].left_out == ("sparse",)
    assert report.models[0].num_tensors == 2
    assert str(report).endswith("; left out: sparse")
    readme = (tmp_path / "out" / "README.txt").read_text()
    assert "Not in weights.safetensors: sparse (no plain tensors)." in readme


def test_names_in_the_file_lead_nowhere_else(tmp_path: Path):
    state = {"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}}
    root = Object(Global("../../etc", "\x1b[31mNet"), (), state=state)
    sources = {"../../evil": "one", "..\\..\\evil": "two", "": "three", "\udc80" * 300: "four"}
    sources = {name.encode("utf-8", "replace").decode(): text for name, text in sources.items()}
    path = tmp_path / "model.safetensors"
    write_safetensors({}, path, metadata={STRUCTURE: write_structure(Structure(root, sources))})
    rescue(path, tmp_path / "out")
    names = sorted(item.name for item in (tmp_path / "out" / "sources").iterdir())
    assert names == ["evil-2.py", "evil.py", "unnamed-2.py", "unnamed.py"]
    assert "\x1b" not in (tmp_path / "out" / "README.txt").read_text()
    assert "\x1b" not in (tmp_path / "out" / "structure.txt").read_text()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.safetensors", "out"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path):
    path = saved(nn.Linear(1, 1), tmp_path / "zip.pt")
    (tmp_path / "out").mkdir()
    with pytest.raises(SaveRefused, match="out"):
        rescue(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_leaves_no_folder(tmp_path: Path):
    with pytest.raises(FileMissing):
        rescue(tmp_path / "no.pt", tmp_path / "out")
    torch.save({"a": 1}, tmp_path / "none.pt")
    with pytest.raises(LoadMismatch, match="there is no whole model in this file"):
        rescue(tmp_path / "none.pt", tmp_path / "out")
    path = tmp_path / "ours.pth"
    save(nn.Linear(64, 64), path, whole=True)
    storage = torchkeep.inspect(path).tensors()[0].entry.storage
    data = bytearray(path.read_bytes())
    data[storage.offset or 0] ^= 1
    path.write_bytes(data)
    match = "ours.pth: tensor 'weight' differs from what was saved: its digest is another one"
    with pytest.raises(DamagedFile, match=match):
        rescue(path, tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["none.pt", "ours.pth"]


def test_a_module_of_another_name_than_its_class_is_rescued_alike(tmp_path: Path):
    model = nn.Sequential(Block(2), Block(2))
    report = rescue(saved(nn.DataParallel(model), tmp_path / "zip.pt"), tmp_path / "out")
    assert report.models[0].class_path == "torch.nn.modules.container.Sequential"
    state = load_file(tmp_path / "out" / "weights.safetensors")
    assert "1.first.weight" in state


def test_a_file_whose_values_unfold_too_far_is_named(tmp_path: Path):
    path = saved(Net(), tmp_path / "zip.pt")
    with pytest.raises(LimitReached, match=r"zip\.pt: the file's values stand in more places"):
        rescue(path, tmp_path / "out", limits=Limits(places=5))
    assert not (tmp_path / "out").exists()
