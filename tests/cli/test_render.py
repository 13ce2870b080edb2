"""What a person sees, in a pipe and in a terminal of 80 columns."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
import torch

import torchkeep
from formats.samples import SAMPLES
from torchkeep.cli import main
from torchkeep.cli.render import MAX_ROWS, MAX_TABLES
from torchkeep.errors import DamagedFile

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def shown(capsys):
    """Return a function that runs `torchkeep inspect` and gives its output."""

    def show(*arguments: object) -> str:
        assert main(["inspect", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return show


def section(output: str, heading: str) -> list[str]:
    """Return the lines of one section."""
    blocks = [block.splitlines() for block in output.split("\n\n")]
    return next(block[1:] for block in blocks if block[0] == heading)


def test_the_state_dicts_come_with_their_sizes_and_wrappers(shown, checkpoint):
    lines = section(shown(checkpoint), "State dicts")
    assert [line.split()[:4] for line in lines[1:]] == [
        ["model_state_dict", "model", "25", "630"],
        ["ema_state_dict", "ema", "25", "630"],
    ]
    assert lines[1].endswith("wrapped: module.")


def test_repeated_layers_are_folded(shown, checkpoint):
    lines = section(shown(checkpoint), "Tensors of model_state_dict")
    assert "  module.{1...3}.conv.weight 3 x float32 [4, 4, 3, 3]".split() in map(str.split, lines)


def test_a_state_dict_like_another_is_not_listed_again(shown, checkpoint):
    lines = section(shown(checkpoint), "Tensors of ema_state_dict")
    assert lines == ["  the same names, shapes and types as model_state_dict"]


def test_of_many_different_networks_the_first_show_their_tensors(shown, tmp_path):
    networks = {f"net{size}": torch.nn.Linear(1, size).state_dict() for size in range(1, 6)}
    torch.save(networks, tmp_path / "a.pth")
    output = shown(tmp_path / "a.pth")
    for size in range(1, 6):
        lines = section(output, f"Tensors of net{size}")
        assert len(lines) == (2 if size <= MAX_TABLES else 1)
    assert lines == ["  as --tensors lists them"]


def test_a_long_name_keeps_its_end_and_does_not_widen_the_table(shown, tmp_path):
    torch.save(
        {"deep." * 1000 + "weight": torch.ones(1), "b.bias": torch.ones(2)}, tmp_path / "a.pth"
    )
    lines = section(shown(tmp_path / "a.pth"), "Tensors")
    assert max(map(len, lines)) < 200
    name = lines[0].split()[0]
    assert "..." in name
    assert name.endswith(".deep.weight")


def test_what_is_left_of_a_broken_file_is_shown_with_the_problem(capsys, checkpoint, tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(checkpoint.read_bytes()[:-1])
    assert main(["inspect", str(path)]) == DamagedFile.exit_code
    output = capsys.readouterr()
    assert output.out.startswith("Damaged: training checkpoint: ")
    assert re.search(r"integrity +damaged: see the findings", output.out)
    assert "the archive is truncated" in output.err


def test_values_at_the_top_come_before_those_deep_inside(shown, tmp_path):
    torch.save(
        {"args": {"a": {"b": "deep"}, "lr": 0.5}, "epoch": 3, "loss": 0.25}, tmp_path / "a.pth"
    )
    lines = section(shown(tmp_path / "a.pth"), "Values")
    assert [line.split()[0] for line in lines] == ["epoch", "loss", "args.lr", "args.a.b"]


def test_tensors_lists_every_one_with_its_place(shown, checkpoint):
    lines = section(shown("--tensors", checkpoint), "Tensors")
    names = [line.split()[0] for line in lines]
    assert names == [tensor.path for tensor in torchkeep.inspect(checkpoint).tensors()]
    assert "optimizer_state_dict.state.0.exp_avg" in names
    assert any(line.endswith("= model_state_dict.module.0.weight") for line in lines)


def test_the_same_tensor_is_told_from_another_view_of_its_memory(shown, tmp_path):
    base = torch.arange(6.0)
    torch.save({"a": base, "b": base[1:], "c": base.detach(), "d": base[1:]}, tmp_path / "a.pth")
    lines = section(shown("--tensors", tmp_path / "a.pth"), "Tensors")
    assert [line.split("  ")[-1] for line in lines] == ["[6]", "shares memory with a", "= a", "= b"]


def test_the_optimizer_shows_its_options(shown, checkpoint):
    lines = section(shown(checkpoint), "Optimizers")
    assert lines[0].startswith("  optimizer_state_dict: Adam, 16 states, ")
    assert lines[1].startswith("    group 0  16 parameters, lr 0.01, betas (0.9, 0.999), eps 1e-08")


def test_values_are_cut_with_a_note(shown, checkpoint):
    lines = section(shown(checkpoint), "Values")
    assert any(line.endswith(f"{'x' * 160}... (10,000 characters)") for line in lines)
    assert any(line.endswith("class 7, ... (100 items)]") for line in lines)


def test_what_a_file_says_is_neither_obeyed_nor_lost(shown, checkpoint):
    output = shown(checkpoint)
    assert r"[red]\x1b[31m\n" in output
    assert "\x1b" not in output


def test_the_tree_is_shown_if_asked(shown, whole_model):
    assert section(shown(whole_model), "Modules") == [
        "  torch.nn.modules.container.Sequential (--tree shows what is in it)"
    ]
    assert section(shown("--tree", whole_model), "Modules")[:4] == [
        "  Sequential()",
        "    (0): Conv2d(in_channels=3, out_channels=4, kernel_size=3), 112 parameters",
        "    (1...3): 3 x Block()",
        "      (conv): Conv2d(in_channels=4, out_channels=4, kernel_size=3, padding=1), "
        "148 parameters",
    ]


def test_a_whole_model_says_what_it_would_import(shown, whole_model):
    output = shown(whole_model)
    assert "safety      needs-trust: unpickling it calls code by name" in output
    lines = section(output, "Names that torch.load(weights_only=True) refuses")
    assert "  needs-trust  torch.nn.modules.linear.Linear" in lines


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_older_releases_that_take_a_file_are_named(shown, tmp_path):
    path = tmp_path / "nested.pth"
    next(sample for sample in SAMPLES if sample.name == "torch-zip nested").write(path)
    line = next(line for line in shown(path).splitlines() if "torch.load" in line)
    assert line.split(maxsplit=1)[1] == (
        "weights_only=True refuses it because of 1 name; that of PyTorch 2.13 and 2.14 takes it; "
        "torchkeep.load takes it, and runs nothing"
    )


def test_a_pipe_gets_no_colour_no_padding_and_no_cut_lines(shown, checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    lines = shown(checkpoint).splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert max(map(len, lines)) > 160
    assert not any("…" in line for line in lines)


def test_a_long_table_says_what_it_left_out(shown, tmp_path):
    import torch

    path = tmp_path / "many.pth"
    torch.save({f"{chr(97 + i % 26)}{i}.weight": torch.zeros(i + 1) for i in range(100)}, path)
    lines = section(shown(path), "Tensors")
    assert len(lines) == MAX_ROWS + 1
    assert lines[-1] == f"  ... and {100 - MAX_ROWS} more rows (--tensors lists all)"
    assert len(section(shown("--tensors", path), "Tensors")) == 100


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("arguments", [[], ["--tensors"], ["--tree"]])
def test_a_terminal_of_80_columns_loses_nothing(arguments, checkpoint, whole_model):
    output = in_terminal([*arguments, str(checkpoint), str(whole_model)])
    plain = ESCAPES.sub("", output)
    assert plain != output, "a terminal has colours"
    assert max(map(len, plain.splitlines())) <= 80
    assert "…" not in plain
    assert "\x1b" not in plain


def in_terminal(arguments: list[str]) -> str:
    """Return what `torchkeep inspect` shows in a terminal of 80 columns."""
    import pty

    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchkeep", "inspect", *arguments],
        stdout=theirs,
        stdin=theirs,
        env=environment,
    )
    os.close(theirs)
    output = io.BytesIO()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(1 << 16):
                output.write(piece)
        except OSError:  # Linux says so when the other end is closed
            pass
    assert process.wait(timeout=30) == 0
    return output.getvalue().decode()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_a_save_says_about_itself_is_shown(shown, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    tensors = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}
    torchkeep.save(tensors, path, metadata={"classes": ["cat", "dog"], "date": "2026-11-23"})
    lines = section(shown(path), "Metadata")
    rows = [line.split(maxsplit=1) for line in lines]
    assert ["classes", '["cat", "dog"]'] in rows
    assert ["date", "2026-11-23"] in rows
    assert {row[0] for row in rows} == {
        "classes",
        "date",
        "torchkeep_version",
        "torch_version",
        "python_version",
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_samples_and_structure_are_told_in_a_line_each(shown, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torchkeep.save(torch.nn.Linear(3, 2), path, samples=torch.ones(5, 3), metric={"loss": 0.5})
    output = shown(path)
    rows = [line.split(maxsplit=1) for line in section(output, "Metadata")]
    assert ["samples", "1 sample with its outputs, float32 [5, 3] -> float32 [5, 2]"] in rows
    assert ["metric.loss", "0.5"] in rows
    assert len(output) < 3_000


def test_a_stored_structure_shows_its_size_alone(shown, tmp_path):
    path = tmp_path / "model.safetensors"
    torchkeep.save(torch.nn.Linear(2, 2), path, whole=True)
    (line,) = [row for row in section(shown(path), "Metadata") if "structure" in row]
    size = len(torchkeep.inspect(path).metadata["torchkeep.structure"])
    assert line.split() == ["structure", f"{size:,}", "characters"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_metadata_that_is_nested_has_a_row_for_each_value(shown, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    metadata = {
        "version": "1.2",
        "train": {"lr": 0.1, "optimizer": {"name": "AdamW", "betas": [0.9, 0.999]}, "none": {}},
        "brace": "{no JSON}",
        "twice": '{"a": 1, "a": 2}',
    }
    torchkeep.save({"x": torch.zeros(2)}, path, metadata=metadata)
    rows = [line.split(maxsplit=1) for line in section(shown(path), "Metadata")]
    assert ["version", "1.2"] in rows
    assert ["train.lr", "0.1"] in rows
    assert ["train.optimizer.name", "AdamW"] in rows
    assert ["train.optimizer.betas", "[0.9, 0.999]"] in rows
    assert ["train.none", "{}"] in rows
    assert ["brace", "{no JSON}"] in rows
    assert ["twice", '{"a": 1, "a": 2}'] in rows
    assert not {"format", "byteorder"} & {row[0] for row in rows}
