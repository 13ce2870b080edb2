from __future__ import annotations

import json
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
