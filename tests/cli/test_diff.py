"""`torchkeep diff`: what a person sees, what a program gets, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from cli_terminal import in_terminal
from torchkeep.cli import main
from torchkeep.comparing import tensors as comparing_tensors

HOSTILE = "w[red]\x1b[31m\n.weight"


def layers(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {f"layers.{n}.weight": torch.full((2, 3), scale * (n + 1)) for n in range(12)}


def saved(value: object, path: Path) -> str:
    torch.save(value, path)
    return str(path)


def test_equal_files_exit_with_0_and_say_what_was_compared(checkpoint: Path, capsys):
    assert main(["diff", str(checkpoint), str(checkpoint)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "equal: 98 tensors and 131 values"
    heads = [line for line in rest if line and not line.startswith(" ")]
    assert heads == [
        "state dict 'model_state_dict': equal (25 tensors)",
        "state dict 'ema_state_dict': equal (25 tensors)",
        "optimizer 'optimizer_state_dict': equal (48 tensors, 28 values)",
        "values: equal (103 values)",
    ]


def test_different_files_exit_with_1_and_a_table(tmp_path, capsys):
    a = saved({"model": layers(), "epoch": 1, "lr": 0.1}, tmp_path / "a.pth")
    wrapped = {f"module.{key}": value for key, value in layers().items()}
    wrapped["module.layers.3.weight"][0, 0] = 6
    wrapped["module.layers.5.weight"] = torch.ones(7)
    wrapped["module.extra.bias"] = torch.ones(1)
    b = saved({"model": wrapped, "epoch": 2, "note": "x"}, tmp_path / "b.pth")
    assert main(["diff", a, b]) == 1
    assert capsys.readouterr().out == (
        """\
different: 1 changed, 1 of another shape, 1 only in B of 13 tensors; 3 of 3 values

state dict 'model': 3 of 13 tensors differ
  A: 'model' is its only state dict.
  B: 'model' is its only state dict. Its names are compared without module.
  changed            relative  largest  elements
    layers.3.weight     0.204        2    1 of 6
  another shape
    layers.5.weight  [2, 3] -> [7]
  only in B
    extra.bias  float32 [1]

values: 3 of 3 values differ
  values that differ
    epoch             1 -> 2
    lr                0.1 (only in A)
    note              x (only in B)

"""
    )


def test_what_one_file_lacks_as_a_whole_is_named(checkpoint: Path, tmp_path, capsys):
    bare = saved(torch.load(checkpoint)["ema_state_dict"], tmp_path / "bare.pth")
    assert main(["diff", str(checkpoint), bare]) == 0
    assert (
        "Not compared: the state dict 'ema_state_dict' (only in A), the optimizer "
        "'optimizer_state_dict' (only in A), 103 other values (only in A)."
    ) in capsys.readouterr().out


def test_names_are_folded_the_worst_first_and_cut(tmp_path, capsys):
    a, b = layers(), layers(2.0)
    a |= {f"{chr(97 + n)}.weight": torch.ones(n + 1) for n in range(14)}
    b |= {f"{chr(97 + n)}.weight": torch.ones(n + 1) + n for n in range(14)}
    paths = [saved(a, tmp_path / "a.pth"), saved(b, tmp_path / "b.pth")]
    assert main(["diff", *paths]) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = lines[4:14]
    assert rows[0].split() == ["n.weight", "13", "13", "14", "of", "14"]
    assert lines[14] == "    ... and 4 more (--all shows all)"
    assert main(["diff", "--all", *paths]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 13 + 12 + 1
    assert main(
        ["diff", saved(layers(), tmp_path / "c.pth"), saved(layers(2.0), tmp_path / "d.pth")]
    )
    row = capsys.readouterr().out.splitlines()[4]
    assert row.split() == ["layers.{0...11}.weight", "1", "12", "72", "of", "72"]


def test_nan_and_infinity_are_told_in_the_row(tmp_path, capsys):
    a = saved({"w.weight": torch.ones(3)}, tmp_path / "a.pth")
    b = saved({"w.weight": torch.tensor([1, float("nan"), float("inf")])}, tmp_path / "b.pth")
    assert main(["diff", a, b]) == 1
    row, below = capsys.readouterr().out.splitlines()[4:6]
    assert row.endswith("2 of 3")
    assert below.strip() == "NaN 0 -> 1, inf 0 -> 1"


def test_a_cast_is_told_with_its_loss(tmp_path, capsys):
    a = saved({"w.weight": torch.ones(3) / 3, "v.weight": torch.ones(3)}, tmp_path / "a.pth")
    halves = {"w.weight": (torch.ones(3) / 3).half(), "v.weight": torch.ones(3).half()}
    assert main(["diff", a, saved(halves, tmp_path / "b.pth")]) == 1
    _, *rows, _ = capsys.readouterr().out.splitlines()[3:]
    assert [row.split(maxsplit=1)[1] for row in rows] == [
        "float32 -> float16, relative 0.000244",
        "float32 -> float16, equal values",
    ]


def test_lines_fit_a_terminal_and_what_the_files_say_is_escaped(tmp_path):
    long = "encoder." * 20
    a = {f"{long}w.weight": torch.ones(2), HOSTILE: torch.ones(2), "s.weight": torch.ones(2, 2)}
    b = {f"{long}w.weight": torch.zeros(2), HOSTILE: torch.zeros(2), "s.weight": torch.ones(2)}
    paths = [
        saved({HOSTILE: a, "x" * 99: "y" * 999, "z": 1}, tmp_path / "a.pth"),
        saved({HOSTILE: b, "x" * 99: HOSTILE, "z": "y " * 99}, tmp_path / "b.pth"),
    ]
    output = in_terminal("diff", *paths)
    assert "\x1b" not in output
    assert r"w[red]\x1b[31m\n.weight" in output
    assert [line for line in output.splitlines() if len(line) > 80] == []


def test_digests_are_named_and_can_be_verified(tmp_path, capsys):
    import torchkeep

    path = tmp_path / "a.safetensors"
    torchkeep.save(nn.Linear(2, 2), path)
    assert main(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out.endswith("\n2 tensors compared by the files' digests.\n")
    assert main(["diff", "--verify", str(path), str(path)]) == 0
    assert "digests" not in capsys.readouterr().out


def test_one_state_dict_can_be_selected(checkpoint: Path, capsys):
    select = ["--select", "model_state_dict", "--select-b", "ema"]
    assert main(["diff", *select, str(checkpoint), str(checkpoint)]) == 0
    output = capsys.readouterr().out
    assert "state dict 'model_state_dict' in A, 'ema_state_dict' in B: equal" in output
    assert "optimizer" not in output


def test_json_is_one_document(tmp_path, capsys):
    a, b = saved(layers(), tmp_path / "a.pth"), saved(layers(2.0), tmp_path / "b.pth")
    assert main(["diff", "--json", a, b]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["a"], document["equal"], document["has_numbers"]) == (a, False, True)
    assert len(document["parts"][0]["tensors"]) == 12
    assert main(["diff", "--json", a, a]) == 0
    assert json.loads(capsys.readouterr().out)["parts"][0]["tensors"] == []
    assert main(["diff", "--json", "--all", a, a]) == 0
    assert len(json.loads(capsys.readouterr().out)["parts"][0]["tensors"]) == 12


def test_problems_have_their_own_exit_codes(tmp_path, capsys):
    a, page = saved(layers(), tmp_path / "a.pth"), tmp_path / "page.pth"
    page.write_text("<html>")
    assert main(["diff", a, str(page)]) == 4
    assert capsys.readouterr().err.startswith(f"torchkeep: {page}: this is a web page, not a model")
    assert main(["diff", a, str(tmp_path / "none")]) == 3
    assert main(["diff", a, saved([1], tmp_path / "list.pth")]) == 9


def test_without_torch_the_bytes_are_compared_and_the_rest_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparing_tensors, "has_torch", lambda: False)
    monkeypatch.setattr("torchkeep.comparing.has_torch", lambda: False)
    a, b = saved(layers(), tmp_path / "a.pth"), saved(layers(2.0), tmp_path / "b.pth")
    assert main(["diff", a, b]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split() == ["layers.{0...11}.weight", "bytes", "differ"]
    assert lines[-1] == (
        "How far changed tensors are apart needs PyTorch: pip install 'torchkeep[torch]'"
    )
