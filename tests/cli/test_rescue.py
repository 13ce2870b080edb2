from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from torchkeep.cli import main


def test_a_whole_model_is_rescued_and_what_there_is_is_told(whole_model: Path, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["rescue", str(whole_model), str(folder)]) == 0
    output = capsys.readouterr().out
    assert output == (
        f"{folder}: torch.nn.modules.container.Sequential, 630 parameters in 25 tensors\n"
    )
    assert sorted(item.name for item in folder.iterdir()) == [
        "README.txt",
        "structure.json",
        "structure.txt",
        "weights.safetensors",
    ]


def test_source_texts_and_what_is_left_out_are_told(tmp_path: Path, capsys):
    model = nn.Linear(2, 2)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    torch.save(model, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert main(["rescue", str(tmp_path / "model.pt"), str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert output.endswith("; 1 source text; left out, being no plain tensors: sparse\n")


def test_a_file_without_a_whole_model_exits_with_9(checkpoint: Path, tmp_path, capsys):
    assert main(["rescue", str(checkpoint), str(tmp_path / "out")]) == 9
    assert "there is no whole model in this file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_exits_with_8(whole_model: Path, tmp_path, capsys):
    assert main(["rescue", str(whole_model), str(tmp_path)]) == 8
    assert capsys.readouterr().err == (
        f"torchkeep: {tmp_path}: there is something already. "
        "Choose another name; a folder is never replaced.\n"
    )
