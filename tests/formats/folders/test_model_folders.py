"""Folders of transformers, its Trainer, PEFT, diffusers, DeepSpeed, and of no one in particular."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torchkeep
from formats.samples_folders import (
    network,
    write_adapter,
    write_deepspeed,
    write_hf_model,
    write_loose,
    write_pipeline,
    write_shards,
    write_trainer,
)
from torchkeep.contents import Contents
from torchkeep.errors import DamagedFile, NotAModelFile
from torchkeep.formats import describe, examine
from torchkeep.identify import inspect


def told(contents: Contents) -> list[tuple[str, str, str]]:
    return [(item.rule, item.severity, item.place) for item in contents.findings]


# --- The Trainer ---------------------------------------------------------------------------------


def test_a_trainer_folder_tells_how_far_it_is_and_what_of(tmp_path: Path) -> None:
    write_trainer(tmp_path / "checkpoint-300")
    found = inspect(tmp_path / "checkpoint-300")
    assert found.summary == (
        "HF Trainer checkpoint at step 300 of 600, epoch 1.5, TinyForImages: "
        "34 parameters in 9 tensors, AdamW, scheduler."
    )
    assert found.summary.count("epoch 1.5") == 1
    assert found.values["trainer_state.json.global_step"] == 300
    assert found.values["trainer_state.json.log_history.loss"] == 0.25
    assert math.isnan(found.values["trainer_state.json.log_history.eval_loss"])
    assert found.values["config.json.id2label"] == ["cat", "dog"]
    assert [item.name for item in found.optimizers] == ["optimizer.pt"]
    assert found.schedulers == ("scheduler.pt",)
    assert "transformers.training_args.TrainingArguments" in found.safety.globals


def test_the_folders_of_a_trainer_run_are_told_of_one_by_one(tmp_path: Path) -> None:
    for step in (300, 600):
        write_trainer(tmp_path / f"checkpoint-{step}")
    contents = describe(tmp_path)
    assert list(contents.root) == ["checkpoint-300", "checkpoint-600"]
    assert contents.members[0].kind.startswith("HF Trainer checkpoint")


def test_a_trainer_folder_of_deepspeed_shows_its_parts_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-500"
    write_trainer(folder)
    write_deepspeed(tmp_path / "x")
    (tmp_path / "x" / "global_step500").rename(folder / "global_step500")
    (tmp_path / "x" / "latest").rename(folder / "latest")
    contents = describe(folder)
    assert contents.kind.startswith("HF Trainer checkpoint")
    assert "mp_rank_00_model_states.pt" in contents.root["global_step500"]


# --- Models and adapters -------------------------------------------------------------------------


def test_a_model_folder_is_named_by_its_config(tmp_path: Path) -> None:
    write_hf_model(tmp_path / "model")
    contents = describe(tmp_path / "model")
    assert contents.kind == "model folder of TinyForImages"
    assert list(contents.root) == ["config.json", "model.safetensors"]
    assert told(contents) == []


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    assert describe(tmp_path / "adapter").kind == "PEFT adapter (LORA) for tiny/base"


def test_a_pipeline_is_made_of_its_folders(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "pipeline")
    contents = describe(tmp_path / "pipeline")
    assert contents.kind == "diffusers pipeline: TinyPipeline"
    assert list(contents.root) == ["model_index.json", "unet", "vae"]
    assert [member.path.name for member in contents.members] == ["unet", "vae"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1, "a": 2}', "[" * 100_000, "\udc80"])
def test_a_broken_config_is_named_and_nothing_else_suffers(text: str, tmp_path: Path) -> None:
    write_hf_model(tmp_path / "model")
    data = text.encode("utf-8", "surrogateescape")
    (tmp_path / "model" / "config.json").write_bytes(data)
    contents = describe(tmp_path / "model")
    assert list(contents.root) == ["model.safetensors"]
    assert told(contents) in ([], [("broken-json", "damaged", "config.json")])
    assert contents.kind == "folder of 1 model file and 3 other files"


def test_a_config_of_any_values_is_told_of_as_far_as_it_goes(tmp_path: Path) -> None:
    write_hf_model(tmp_path / "model")
    odd = {"architectures": 5, "model_type": None, "id2label": {"1": "a"}, "auto_map": "x"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(odd))
    (tmp_path / "model" / "trainer_state.json").write_text('{"epoch": "x", "log_history": 5}')
    contents = describe(tmp_path / "model")
    assert contents.root["config.json"] == odd
    assert contents.kind == "HF Trainer checkpoint"


def test_a_config_of_many_megabytes_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hf_model(tmp_path / "model")
    monkeypatch.setattr("torchkeep.formats.folders.model_folders._MOST_JSON_NBYTES", 10)
    contents = describe(tmp_path / "model")
    assert told(contents) == [("large-json", "note", "config.json")]
    assert "10 are read at most" in contents.findings[0].text


def test_code_that_the_config_names_is_noted(tmp_path: Path) -> None:
    write_hf_model(tmp_path / "model")
    about = {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(about))
    assert told(describe(tmp_path / "model")) == [("remote-code", "note", "config.json")]


# --- Any folder ----------------------------------------------------------------------------------


def test_a_folder_of_models_lists_them_and_counts_the_rest(tmp_path: Path) -> None:
    write_loose(tmp_path / "models")
    contents = describe(tmp_path / "models")
    assert contents.kind == "folder of 2 model files and 2 other files"
    assert [member.path.name for member in contents.members] == ["first.pth", "second.safetensors"]
    assert [member.container for member in contents.members] == ["torch-zip", "safetensors"]


def test_a_file_that_can_not_be_read_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_loose(folder)
    path = folder / "first.pth"
    path.write_bytes(path.read_bytes()[:-30])
    contents = describe(folder)
    assert ("unreadable-file", "damaged", "first.pth") in told(contents)
    assert "second.safetensors" in contents.root
    with pytest.raises(DamagedFile, match=r"first\.pth: "):
        torchkeep.load(folder)


def test_a_model_s_name_with_something_else_in_it_is_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_loose(folder)
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.bin").write_text("<!doctype html><html></html>")
    contents = describe(folder)
    assert told(contents) == [
        ("unreadable-file", "damaged", "empty.pth"),
        ("unreadable-file", "damaged", "page.bin"),
    ]


def test_what_a_pickle_names_is_seen_whatever_the_file_is_called(tmp_path: Path) -> None:
    write_hf_model(tmp_path / "model")
    (tmp_path / "model" / "vocab").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    found = inspect(tmp_path / "model")
    assert "posix.system" in found.safety.globals
    assert found.safety.verdict == "dangerous"


@pytest.mark.parametrize("name", ["settings.yaml", "config.json"])
@pytest.mark.parametrize("write", [write_hf_model, write_shards])
def test_settings_that_name_what_is_to_be_called_are_seen(
    name: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path / "model")
    (tmp_path / "model" / name).write_text('{"x": {"_target_": "os.system"}}')
    assert inspect(tmp_path / "model").safety.verdict == "dangerous"


def test_a_pickle_by_the_name_of_something_else_is_seen(tmp_path: Path) -> None:
    attack = b"cposix\nsystem\n(S'true'\ntR."
    for name in ("config.json", "evil-00001-of-00001.h5"):
        folder = tmp_path / name
        write_hf_model(folder)
        index = {"a": name, "b": "gone.h5"}
        (folder / "x.index.json").write_text(json.dumps({"weight_map": index}))
        (folder / name).write_bytes(attack)
        assert inspect(folder).safety.verdict == "dangerous", name


# --- DeepSpeed -----------------------------------------------------------------------------------


def test_a_deepspeed_checkpoint_lists_the_files_of_all_ranks(tmp_path: Path) -> None:
    write_deepspeed(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "global_step500"):
        contents = describe(path)
        assert contents.path == path
        assert contents.kind == (
            "DeepSpeed checkpoint of step 500: 1 file of the model, 2 files of the optimizer"
        )
        assert len(contents.members) == 3
        assert contents.root["mp_rank_00_model_states.pt"]["global_steps"] == 500


@pytest.mark.parametrize("name", ["..", "../x", "/tmp", "", "gone", "x" * 300, "\0"])
def test_the_name_of_the_newest_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_deepspeed(folder)
    (folder / "latest").write_text(name)
    contents = examine(folder)
    assert list(contents.root) == ["global_step500"]


def test_a_newest_without_any_file_of_deepspeed_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "latest").write_text("global_step1")
    with pytest.raises(DamagedFile, match="which latest names, has no files of DeepSpeed"):
        describe(tmp_path)


@pytest.mark.parametrize("where", [".", "global_step500"])
def test_a_pickle_beside_the_files_of_deepspeed_is_seen(where: str, tmp_path: Path) -> None:
    write_deepspeed(tmp_path)
    (tmp_path / where / "hidden").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert inspect(tmp_path).safety.verdict == "dangerous"


def test_a_broken_rank_is_named(tmp_path: Path) -> None:
    write_deepspeed(tmp_path)
    path = tmp_path / "global_step500" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    path.write_bytes(b"x")
    contents = describe(tmp_path)
    assert told(contents) == [("unreadable-file", "damaged", path.name)]
    for other in path.parent.iterdir():
        other.write_bytes(b"")
    with pytest.raises((DamagedFile, NotAModelFile), match="none of its files can be read"):
        describe(tmp_path)


def test_a_folder_of_one_kind_of_file_is_read_whatever_their_number(tmp_path: Path) -> None:
    for number in range(30):
        torch.save(network().state_dict(), tmp_path / f"{number:02d}.pth")
    assert len(describe(tmp_path).members) == 30
