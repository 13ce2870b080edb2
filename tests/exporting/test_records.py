"""What a run keeps of the deployment files that were made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporting.samples import images, run_folder
from torchkeep.errors import (
    DamagedFile,
)
from torchkeep.exporting import (
    export,
)
from torchkeep.report import RunReport, write_report


def test_exports_of_a_run_and_of_a_file_in_it_are_in_its_report(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_report(run / "report.html", RunReport("a run"))
    data = images(tmp_path / "data")
    export(run, tmp_path / "a.ts", data=data)
    report = export(run / "best.safetensors", tmp_path / "a.pt2", data=data)
    page = (run / "report.html").read_text()
    assert page.count("<h2>Deployment</h2>") == 1
    assert "a.ts" in page
    assert "a.pt2" in page
    assert report.source == "best.safetensors"
    kept = [json.loads(line) for line in (run / "exports.jsonl").read_text().splitlines()]
    assert [each["name"] for each in kept] == ["a.ts", "a.pt2"]


def test_a_run_may_have_anything_in_its_list_of_exports(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_report(run / "report.html", RunReport("a run"))
    export(run, tmp_path / "a.ts")
    (line,) = (run / "exports.jsonl").read_bytes().splitlines()
    told = json.loads(line) | {"name": "<script>alert(1)</script>"}
    odd = [{"nbytes": "x"}, {"nbytes": 10**400}, {"agreement": "all"}, {"kind": 5}, {"speedup": -1}]
    lines = [json.dumps(told | each).encode() for each in ({}, *odd)]
    (run / "exports.jsonl").write_bytes(b"\n".join([*lines, b"\xff", b"[1]", b"null", b"", line]))
    export(run, tmp_path / "b.ts")
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    kept = [json.loads(each) for each in (run / "exports.jsonl").read_text().splitlines()]
    assert [each["name"] for each in kept] == [told["name"], "a.ts", "b.ts"]


def test_a_run_that_can_not_be_told_of_an_export_has_the_file_all_the_same(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (run / "report.html").write_text("<p>somebody else's</p>")
    with pytest.raises(DamagedFile) as caught:
        export(run, tmp_path / "net.ts")
    assert caught.value.advice.startswith("net.ts is proven, and there.")
    assert (tmp_path / "net.ts").exists()
