"""Deployment files in a run's page, which come when the page is there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from report.made import EVIL, hostile_run, usual_run
from torchkeep.errors import DamagedFile
from torchkeep.report import Deployment, add_deployments, render_report, write_report

ONE = Deployment("net.onnx", "onnx, int8", 12_000_000, 0.031, 0.99, 0.981, 0.983, 0.0021, 3.4, "x")


def test_files_are_put_into_a_page_in_place_of_those_before(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, usual_run())
    before = path.read_text()
    add_deployments(path, [ONE])
    page = path.read_text()
    row = page[page.index("<h2>Deployment</h2>") :].partition("</section>")[0]
    for told in ("net.onnx", "12.0 MB", "99.0%", "98.10% (98.30%)", "2.1 ms", "3.4 times"):
        assert told in row
    add_deployments(path, [ONE])
    assert path.read_text() == page
    add_deployments(path, [])
    assert path.read_text() == before == render_report(usual_run())


def test_a_name_becomes_no_markup_and_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, hostile_run())
    evil = Deployment(
        f"{EVIL}<!--/deployments-->", EVIL, 1, 0.0, None, None, None, 1.0, 1.0, "<!--deployments-->"
    )
    add_deployments(path, [evil])
    page = path.read_text()
    assert "<img src=x" not in page
    assert page.count("<!--deployments-->") == page.count("<!--/deployments-->") == 1


def test_another_page_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(DamagedFile, match="no report of torchkeep that can be added to"):
        add_deployments(path, [ONE])
    assert path.read_text() == "<html>mine</html>"
