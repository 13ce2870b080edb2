from __future__ import annotations

import json
import struct
from pathlib import Path

import torchkeep
from torchkeep.cli import main


def damage(path: Path) -> None:
    storage = torchkeep.inspect(path).tensors()[0].entry.storage
    data = bytearray(path.read_bytes())
    data[storage.offset or 0] ^= 1
    path.write_bytes(data)


def test_a_whole_file_is_ok(checkpoint: Path, capsys):
    assert main(["verify", str(checkpoint)]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"ok       {checkpoint}: ")
    assert output.endswith(" storages compared with checksums\n")


def test_a_damaged_file_exits_with_5_and_names_the_tensor(checkpoint: Path, tmp_path, capsys):
    path = tmp_path / "damaged.pth"
    path.write_bytes(checkpoint.read_bytes())
    damage(path)
    name = torchkeep.inspect(path).tensors()[0].path
    assert main(["verify", str(checkpoint), str(path)]) == 5
    whole, damaged, reason = capsys.readouterr().out.splitlines()
    assert whole.startswith("ok ")
    assert damaged.startswith(f"damaged  {path}: ")
    assert reason.strip() == f"the bytes of tensor {name!r} do not match the archive's checksum"
    assert main(["verify", "--json", str(path)]) == 5
    written = json.loads(capsys.readouterr().out)
    assert [(item["rule"], item["severity"]) for item in written["findings"]] == [
        ("crc-mismatch", "damaged")
    ]


def test_json_is_one_line_per_path_whatever_becomes_of_it(checkpoint: Path, tmp_path, capsys):
    page = tmp_path / "page.pth"
    page.write_text("<html>")
    assert main(["verify", "--json", str(checkpoint), str(page)]) == 4
    whole, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert whole["ok"]
    assert whole["num_unchecked"] == 0
    assert whole["findings"] == []
    assert not other["ok"]
    assert other["problem"] == "this is a web page, not a model"


def test_inspect_can_verify_as_well(checkpoint: Path, capsys):
    assert main(["inspect", "--verify", str(checkpoint)]) == 0
    assert "integrity   " in capsys.readouterr().out
    assert main(["inspect", "--verify", "--json", str(checkpoint)]) == 0
    assert json.loads(capsys.readouterr().out)["integrity"]["verified"]


def test_what_was_left_out_exits_with_14_and_is_named(checkpoint: Path, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.pth").write_bytes(checkpoint.read_bytes())
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert main(["verify", str(folder)]) == 14
    first, reason = capsys.readouterr().out.splitlines()
    assert first.startswith(f"incomplete  {folder}: ")
    assert reason.strip().startswith("model.gguf: ")
    assert main(["verify", "--json", str(folder)]) == 14
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["state"], told["findings"]) == (False, "incomplete", [])
    assert [item["place"] for item in told["left_out"]] == ["model.gguf"]
    assert main(["inspect", str(folder)]) == 0
    assert main(["inspect", "--verify", str(folder)]) == 14
    assert "incomplete: " in capsys.readouterr().out


def test_a_damaged_file_in_a_subfolder_exits_with_5(checkpoint: Path, tmp_path, capsys):
    for name in ("whole.pth", "sub/cut.pth"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(checkpoint.read_bytes()[: None if name == "whole.pth" else -100])
    assert main(["verify", str(tmp_path / "models")]) == 5
    first, reason, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged  ")
    assert reason.strip().startswith("sub/cut.pth: the archive is truncated")
