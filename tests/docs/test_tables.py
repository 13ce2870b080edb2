"""The tables of the documentation are whole: nothing is missing, nothing is made up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

import torchkeep
from docs.pages import ROOT
from torchkeep.cli import main
from torchkeep.cli.failures import EXIT_CODES
from torchkeep.formats import READERS
from torchkeep.formats.folders.kinds import FOLDER_KINDS
from torchkeep.formats.zips.kinds import ZIP_KINDS
from torchkeep.matching.adaptations import NAMES

DOCS = ROOT / "docs"


def rows(page: str, heading: str, of: str = "") -> list[list[str]]:
    """Return the cells of the first table after a heading, or the first `of` something."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    table = re.search(rf"(^\|.*{re.escape(of)}.*\n(?:^\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, heading
    lines = table[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_exit_code_is_documented():
    documented = {int(code): meaning for code, meaning in rows("cli.md", "## Exit codes")}
    assert documented == EXIT_CODES


def test_every_format_is_documented():
    table = rows("formats.md", "# What it reads")
    documented = [name for row in table for name in re.findall("`(.*?)`", row[0])]
    assert len(documented) == len(set(documented))
    kinds = {kind.name for kind in (*READERS, *ZIP_KINDS, *FOLDER_KINDS)}
    assert set(documented) == kinds | {"safetensors-sharded", "torch-sharded"}


def test_every_adaptation_is_documented():
    documented = {
        name.strip("`"): what for name, what in rows("loading.md", "## What is done when you ask")
    }
    assert documented == NAMES


def test_every_field_of_the_json_is_documented(tmp_path: Path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pth")
    form = torchkeep.inspect(tmp_path / "a.pth").to_json(tensors=True)
    documented = {}
    for names, _, meaning in rows("cli.md", "## The JSON of `inspect`"):
        documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), meaning)
    assert sorted(documented) == sorted(form)
    for field in ("safety", "integrity"):
        assert set(form[field]) <= set(re.findall(r"`(\w+)`", documented[field]))
    for field in ("state_dicts", "tensors"):
        assert list(form[field][0]) == [
            name for name in re.findall(r"`(\w+)`", documented[field]) if name in form[field][0]
        ]
    assert f"this table: {form['schema']}" in documented["schema"]


def test_every_field_of_the_json_of_scan_and_verify_is_documented(tmp_path: Path, capsys):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pth")
    (tmp_path / "notes.txt").write_text("no model\n")
    for verb, paths in (("scan", [tmp_path]), ("verify", sorted(tmp_path.iterdir()))):
        main([verb, "--json", *map(str, paths)])
        forms = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        documented = {}
        for names, _, meaning in rows("cli.md", "## The JSON of `scan` and `verify`", f"`{verb}`"):
            documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), meaning)
        assert list(documented) == list(dict.fromkeys(field for form in forms for field in form))
        assert all(f"this table: {form['schema']}" in documented["schema"] for form in forms)


def test_every_field_of_the_json_of_runs_and_doctor_is_documented(tmp_path: Path, capsys):
    with torchkeep.Checkpointer(tmp_path, model=torch.nn.Linear(2, 2)) as checkpointer:
        checkpointer.save()
    for verb, inner in (("runs", "checkpoints"), ("doctor", "findings")):
        main([verb, "--json", str(tmp_path)])
        form = json.loads(capsys.readouterr().out)
        documented = {}
        for names, _, meaning in rows("cli.md", "## The JSON of `runs` and `doctor`", f"`{verb}`"):
            documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), meaning)
        assert list(documented) == list(form)
        told = re.findall(r"`(\w+)`", documented[inner])
        assert [name for name in told if name in form[inner][0]] == list(form[inner][0])
        assert f"this table: {form['schema']}" in documented["schema"]


def test_every_file_and_field_of_a_checkpoint_is_documented(tmp_path: Path):
    model = torch.nn.Linear(2, 2)
    with torchkeep.Checkpointer(tmp_path / "run", model=model) as checkpointer:
        folder = checkpointer.save()
    text = (DOCS / "files.md").read_text(encoding="utf-8")
    assert all(f"    {path.name} " in text for path in folder.iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    documented = {
        name
        for names, _ in rows("files.md", "## A run")
        for name in re.findall(r"`([a-z_]+)`", names)
    }
    assert documented == set(manifest)
