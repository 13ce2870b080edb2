"""The documentation does what it says: its code runs, its outputs are real, its tables are whole.

After a change that is meant, `UPDATE_DOCS=1 pytest tests/docs` writes the new outputs into the
pages.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from docs.pages import PAGES, run_page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    page = path.read_text(encoding="utf-8")
    real = run_page(page, str(path))
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(real, encoding="utf-8")
    else:
        assert real == page


# --- The instrument itself ---------------------------------------------------------------------


def page_of(*parts: tuple[str, str]) -> str:
    """Return a page with fenced blocks of the given languages."""
    return "\n".join(f"```{language}\n{text}```\n" for language, text in parts)


def test_a_wrong_output_is_replaced_by_the_real_one():
    page = page_of(("python", "print(6 * 7)\n"), ("text", "41\n"))
    assert run_page(page, "page.md") == page.replace("41", "42")


def test_dots_stand_for_anything():
    page = page_of(("python", "print(6 * 7, 'is the answer')\n"), ("text", "... is the answer\n"))
    assert run_page(page, "page.md") == page


def test_blocks_of_a_page_share_their_names_and_can_be_pickled():
    text = "import pickle\nclass Net: pass\n"
    page = page_of(("python", text), ("python", "print(type(pickle.loads(pickle.dumps(Net()))))\n"))
    assert run_page(page, "page.md") == page


def test_an_error_has_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as error:
        run_page("# Title\n\n" + page_of(("python", "x = 1\nx / 0\n")), "page.md")
    last = error.traceback[-1].frame
    assert (last.code.raw.co_filename, error.traceback[-1].lineno + 1) == ("page.md", 5)


def test_commands_run_and_others_are_left_alone():
    page = page_of(("console", "$ rm -rf everything\n$ torchkeep inspect no-file\nnothing\n"))
    problem = "torchkeep: no-file: there is no such file. Check the path."
    assert run_page(page, "page.md") == page.replace("nothing", problem)
