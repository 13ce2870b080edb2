from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torchkeep
from torchkeep.cli import main
from torchkeep.contents import Contents, Finding
from torchkeep.errors import DamagedFile, LimitReached


@pytest.fixture
def html(tmp_path: Path) -> Path:
    path = tmp_path / "download.pth"
    path.write_text("<!DOCTYPE html><title>Sign in</title>")
    return path


def test_the_first_line_says_what_the_file_is(checkpoint: Path, capsys):
    assert main(["inspect", str(checkpoint)]) == 0
    first, _, _ = capsys.readouterr().out.partition("\n")
    assert first == torchkeep.inspect(checkpoint).summary
    assert first.startswith("Training checkpoint: ")


def test_json_is_one_line_per_file_and_what_the_library_says(checkpoint, whole_model, capsys):
    assert main(["inspect", "--json", str(checkpoint), str(whole_model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    documents = [json.loads(line) for line in lines]
    assert documents == [torchkeep.inspect(path).to_json() for path in (checkpoint, whole_model)]
    assert [document["role"] for document in documents] == ["checkpoint", "module"]


def test_json_lists_the_tensors_only_if_asked(checkpoint: Path, capsys):
    main(["inspect", "--json", str(checkpoint)])
    assert "tensors" not in json.loads(capsys.readouterr().out)
    main(["inspect", "--json", "--tensors", str(checkpoint)])
    assert json.loads(capsys.readouterr().out)["tensors"]


def test_json_has_no_numbers_that_json_lacks(tmp_path: Path, capsys):
    path = tmp_path / "nan.pth"
    torch.save({"loss": float("nan"), "best": float("-inf"), "big": 10**5000}, path)
    assert main(["inspect", "--json", str(path)]) == 0

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    values = json.loads(capsys.readouterr().out, parse_constant=refuse)["values"]
    assert values["loss"] == "nan"


def test_json_that_would_be_none_is_a_bug_not_an_output(checkpoint: Path, capsys, monkeypatch):
    monkeypatch.setattr(torchkeep.Inspection, "to_json", lambda *_, **__: {"loss": float("nan")})
    assert main(["inspect", "--json", str(checkpoint)]) == 70
    assert capsys.readouterr().out == ""


def test_a_problem_writes_nothing_to_stdout(html: Path, capsys):
    assert main(["inspect", str(html)]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"torchkeep: {html}: this is a web page, not a model.")
    assert captured.err.count("\n") == 1


def test_json_tells_of_a_problem_as_well(html: Path, checkpoint: Path, tmp_path: Path, capsys):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    assert main(["inspect", "--json", str(html), str(cut), str(tmp_path / "missing")]) == 4
    page, damaged = map(json.loads, capsys.readouterr().out.splitlines())
    assert (page["container"], page["role"]) == ("text", "unknown")
    assert page["problem"]["kind"] == "NotAModelFile"
    assert page["safety"]["verdict"] == "ambiguous"
    assert damaged["problem"]["kind"] == "DamagedFile"
    assert damaged["problem"]["advice"] == "Copy or download the file again."
    assert not damaged["integrity"]["ok"]
    assert damaged["safety"]["verdict"] == "ambiguous"


def test_a_pickle_that_breaks_after_its_payload_is_called_dangerous(tmp_path: Path, capsys):
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x04cos\nsystem\n\x8c\x04true\x85R\xff")
    assert main(["inspect", "--json", str(path)]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out)["safety"]["verdict"] == "dangerous"
    warning, error = captured.err.splitlines()
    assert warning == (
        f"torchkeep: {path}: what can be read of it is dangerous (os.system). Don't load it."
    )
    assert error.endswith("the pickle's byte 21 is no opcode.")


def test_one_bad_file_does_not_hide_the_others(
    checkpoint: Path, html: Path, tmp_path: Path, capsys
):
    missing = tmp_path / "missing.pth"
    assert main(["inspect", str(html), str(missing), str(checkpoint)]) == 4
    captured = capsys.readouterr()
    assert captured.out.startswith(f"==> {checkpoint} <==\nTraining checkpoint: ")
    assert [line.partition(": ")[0] for line in captured.err.splitlines()] == ["torchkeep"] * 2


def test_what_is_damaged_is_shown_and_exits_with_5(checkpoint: Path, capsys, monkeypatch):
    found = torchkeep.inspect(checkpoint)
    finding = Finding("crc-mismatch", "damaged", "data/3", "the checksum differs")
    integrity = torchkeep.identify.Integrity(ok=False, findings=(finding,))
    contents = replace(found.contents, findings=(finding,))
    damaged = replace(found, integrity=integrity, contents=contents)
    monkeypatch.setattr(torchkeep.identify, "identify", lambda _contents, _limits: damaged)
    assert main(["inspect", str(checkpoint)]) == 5
    output = capsys.readouterr().out
    assert "integrity   damaged: see the findings" in output
    assert "damaged  the checksum differs (data/3)" in output


@pytest.mark.parametrize("options", [["--json"], ["--json", "--tensors"]])
def test_json_needs_neither_rich_nor_torch(options: list[str], checkpoint: Path):
    program = (
        "import sys; from torchkeep.cli import main; code = main(sys.argv[1:]);"
        "print([m for m in ('rich', 'torch', 'numpy') if m in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", *options, str(checkpoint)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[] 0\n"


@pytest.mark.parametrize("options", [[], ["--verify"]])
def test_a_file_is_read_once_whatever_is_wrong_with_it(
    options: list[str], checkpoint: Path, html: Path, tmp_path: Path, capsys, monkeypatch
):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:-100])
    read: list[str] = []
    examine = torchkeep.formats.examine

    def counted(path: str, **limits: Any) -> Contents:
        read.append(path)
        return examine(path, **limits)

    monkeypatch.setattr(torchkeep.formats, "examine", counted)
    monkeypatch.setattr(torchkeep.identify, "examine", counted)
    paths = [str(html), str(cut), str(checkpoint)]
    assert main(["inspect", "--json", *options, *paths]) == 4
    assert read == paths
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [item["problem"] and item["problem"]["kind"] for item in documents]
    assert kinds == ["NotAModelFile", "DamagedFile", None]
    assert [item["integrity"]["verified"] for item in documents] == [False, False, bool(options)]


def test_what_keeps_the_tensors_from_being_read_is_said_and_the_rest_is_shown(
    checkpoint: Path, capsys, monkeypatch
):
    def refuse(*_arguments: object) -> None:
        raise DamagedFile("the table of digests is broken")

    monkeypatch.setattr(torchkeep.identify.integrity, "verify_contents", refuse)
    assert main(["inspect", "--verify", "--json", str(checkpoint)]) == 5
    captured = capsys.readouterr()
    assert not json.loads(captured.out)["integrity"]["verified"]
    assert captured.err == f"torchkeep: {checkpoint}: the table of digests is broken.\n"


def test_a_limit_that_the_list_of_tensors_reaches_does_not_hide_the_next_file(
    checkpoint: Path, capsys, monkeypatch
):
    def refuse(_self: object) -> None:
        raise LimitReached("too many")

    monkeypatch.setattr(torchkeep.Inspection, "tensors", refuse)
    assert main(["inspect", "--json", "--tensors", str(checkpoint), str(checkpoint)]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "torchkeep: too many.\n" * 2
