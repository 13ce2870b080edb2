"""`torchkeep convert`: what a person sees, what a program gets, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torchkeep
from cli_terminal import in_terminal
from torchkeep.cli import main

HOSTILE = "w[red]\x1b[31m\n.weight"


def saved(value: object, path: Path) -> str:
    torch.save(value, path)
    return str(path)


def test_a_conversion_is_one_sentence_and_what_changed(checkpoint: Path, tmp_path, capsys):
    made = tmp_path / "model.safetensors"
    command = ["convert", "--strip", "--select", "model_state_dict", str(checkpoint), str(made)]
    assert main(command) == 0
    first, why, renamed, metadata, left_out = capsys.readouterr().out.splitlines()
    size = made.stat().st_size
    assert first == f"{made}: 25 tensors, {size / 1000:.1f} kB, each as in {checkpoint}"
    assert why == "  'model_state_dict' was asked for by name."
    assert renamed.startswith("  renamed: module.0.weight -> 0.weight, module.0.bias -> 0.bias, ")
    assert renamed.endswith(" and 17 more")
    assert metadata.startswith("  now in the metadata: epoch, classes, notes")
    assert left_out == "  left out: ema_state_dict, optimizer_state_dict"
    assert torchkeep.inspect(made).state_dicts[0].num_tensors == 25


def test_json_is_one_document(checkpoint: Path, tmp_path, capsys):
    made = tmp_path / "b.pth"
    command = ["convert", "--json", "--drop-optimizer", "--dtype", "float16"]
    assert main([*command, str(checkpoint), str(made)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["source"], document["path"]) == (
        *(1, str(checkpoint), str(made)),
    )
    assert document["left_out"] == ["optimizer_state_dict"]
    assert document["cast"]["dtype"] == "float16"
    assert document["cast"]["num_tensors"] == 44
    assert document["state_dict"] is None


def test_keys_are_renamed_and_prefixes_taken_away(tmp_path, capsys):
    state = {"net.a.weight": torch.ones(1), "net.b.weight": torch.ones(1), "c": torch.ones(1)}
    source, made = saved(state, tmp_path / "a.pth"), tmp_path / "b.safetensors"
    rules = ["--strip-prefix", "net", "--rename", "a.*=x.*", "--rename", "c=d=e"]
    assert main(["convert", *rules, source, str(made)]) == 0
    assert set(torchkeep.load(made)) == {"x.weight", "b.weight", "d=e"}
    assert main(["convert", "--rename", "q=r", "--overwrite", source, str(made)]) == 12
    assert capsys.readouterr().err.startswith("torchkeep: rename: the rule 'q' fits no key")


def test_shards_have_a_size(tmp_path, capsys):
    state = {f"l{n}.weight": torch.ones(1000) for n in range(4)}
    source, made = saved(state, tmp_path / "a.pth"), tmp_path / "out" / "model.safetensors"
    made.parent.mkdir()
    assert main(["convert", "--shard-size", "9kB", source, str(made)]) == 0
    assert "  2 files beside the index" in capsys.readouterr().out.splitlines()
    assert len(list(made.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("switch", "text"),
    [
        (["--shard-size", "5 parsecs"], "'5 parsecs' is no size: write 500MB or 5GB"),
        (["--shard-size", "0"], "'0' is no size: write 500MB or 5GB"),
        (["--rename", "nothing"], "'nothing' is no rule: write OLD=NEW"),
        (["--strip", "--strip-prefix", "x"], "not allowed with argument --strip"),
    ],
)
def test_a_wrong_switch_says_what_is_right(switch: list[str], text: str, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", *switch, "a", "b.pth"])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1", 1), ("5GB", 5_000_000_000), ("1.5 kB", 1500), ("2GiB", 1 << 31), ("7mb", 7_000_000)],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int):
    from torchkeep.cli.convert import _nbytes

    assert _nbytes(text) == nbytes


def test_problems_have_their_own_exit_codes(checkpoint: Path, tmp_path, capsys):
    made = str(tmp_path / "b.pth")
    assert main(["convert", str(tmp_path / "none"), made]) == 3
    assert main(["convert", str(checkpoint), str(tmp_path / "b.txt")]) == 8
    assert main(["convert", str(checkpoint), made]) == 0
    assert main(["convert", str(checkpoint), made]) == 8
    assert main(["convert", "--overwrite", str(checkpoint), made]) == 0
    assert main(["convert", "--select", "x", str(checkpoint), made, "--overwrite"]) == 9


def test_lines_fit_a_terminal_and_what_the_file_says_is_escaped(tmp_path):
    state = {f"module.{HOSTILE}": torch.ones(1), "module.b.weight": torch.ones(1)}
    source = saved({"model": state, HOSTILE: torch.ones(2), "n": 1}, tmp_path / "a.pth")
    output = in_terminal("convert", "--strip", source, str(tmp_path / "b.safetensors"))
    assert "\x1b" not in output
    assert r"left out: w[red]\x1b[31m\n.weight" in output
    assert r"renamed: module.w[red]\x1b[31m\n.weight -> w[red]\x1b[31m\n.weight" in output.replace(
        "\n   ", ""
    )
    words = [line for line in output.splitlines() if len(line) > 80 and " " in line.strip()]
    assert words == []
