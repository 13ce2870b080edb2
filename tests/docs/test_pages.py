"""The documentation does what it says: its code runs, its outputs are real, its tables are whole.

After a change that is meant, `UPDATE_DOCS=1 pytest tests/docs` writes the new outputs into the
pages.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.docs.pages import PAGES, run_page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    page = path.read_text(encoding="utf-8")
    real = run_page(page, str(path))
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(real, encoding="utf-8")
    assert real == page
