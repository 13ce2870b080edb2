from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from attacks.streams import payload, state_dict, torch_zip
from torchkeep.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.pth").write_bytes(torch_zip(state_dict()))
    (tmp_path / "b.pkl").write_bytes(payload("m"))
    (tmp_path / "c.pkl").write_bytes(b"\x80\x02cproject\nNet\n)Rcproject\nOther\n)R\x86.")
    (tmp_path / "readme.md").write_bytes(b"# A model\n")
    return tmp_path


def test_each_file_has_a_line_and_the_last_one_counts(folder: Path, capsys) -> None:
    assert main(["scan", str(folder)]) == 13
    assert capsys.readouterr().out == (
        f"data-only    {folder}/a.pth\n"
        f"dangerous    {folder}/b.pkl: loading the file would use posix.system, which runs "
        "programs\n"
        f"needs-trust  {folder}/c.pkl: loading the file would run project.Net "
        "(and 1 other reason)\n"
        "3 files: 1 dangerous, 1 needs-trust, 1 data-only; 1 skipped, no models\n"
    )


def test_the_exit_code_is_0_only_if_everything_is_data_only(folder: Path, capsys) -> None:
    assert main(["scan", str(folder / "a.pth")]) == 0
    assert capsys.readouterr().out.endswith("\n1 file: 1 data-only\n")
    for name in ("b.pkl", "c.pkl", "readme.md"):
        assert main(["scan", str(folder / "a.pth"), str(folder / name)]) == 13


def test_a_path_where_nothing_is_has_no_verdict(folder: Path, capsys) -> None:
    paths = [str(folder / name) for name in ("missing", "a.pth")]
    assert main(["scan", *paths]) == 3
    shown = capsys.readouterr()
    assert shown.out == f"data-only    {folder}/a.pth\n1 file: 1 data-only; 1 missing\n"
    assert shown.err.startswith(f"torchkeep: {folder}/missing: there is no such file")
    assert main(["scan", "--json", *paths]) == 3
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["path"], first["verdict"]) == (paths[0], None)
    assert first["problem"].startswith("there is no such file")
    assert second["verdict"] == "data-only"
    assert main(["scan", *paths, str(folder / "b.pkl")]) == 13


def test_a_folder_without_models_is_clean_and_says_so(tmp_path: Path, capsys) -> None:
    (tmp_path / "readme.md").write_text("hello")
    assert main(["scan", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 files; 1 skipped, no models\n"


def test_what_is_skipped_is_listed_if_asked(folder: Path, capsys) -> None:
    main(["scan", "--skipped", str(folder)])
    assert f"skipped      {folder}/readme.md: text\n" in capsys.readouterr().out


def test_json_is_one_line_per_file(folder: Path, capsys) -> None:
    assert main(["scan", "--json", str(folder)]) == 13
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["verdict"] for item in documents] == [
        "data-only",
        "dangerous",
        "needs-trust",
        None,
    ]
    assert documents[1] == {
        "schema": 1,
        "path": f"{folder}/b.pkl",
        "container": "pickle",
        "verdict": "dangerous",
        "findings": [
            {
                "rule": "dangerous-name",
                "severity": "dangerous",
                "place": "posix.system",
                "text": "loading the file would use posix.system, which runs programs",
            }
        ],
        "problem": "",
    }
    skipped = {"schema": 1, "path": f"{folder}/readme.md", "verdict": None, "skipped": "text"}
    assert documents[3] == skipped


def test_a_limit_can_be_raised(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02](" + b"N" * 1000 + b"e.")
    assert main(["scan", "--limit", "steps=100", str(tmp_path)]) == 13
    assert "--limit" not in capsys.readouterr().out  # the advice is for one file, not for a list
    assert main(["scan", "--limit", "steps=10_000", str(tmp_path)]) == 0


def test_what_a_file_is_called_can_not_break_the_lines(tmp_path: Path, capsys) -> None:
    (tmp_path / "a\n\x1b[31mdata-only.pkl").write_bytes(b"].")
    main(["scan", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    assert "\x1b" not in out


def in_terminal(columns: int, *arguments: object, **environment: str) -> str:
    """Return what the command writes to a terminal of this width."""
    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "torchkeep", *map(str, arguments)],
        stdout=slave,
        env={**os.environ, "COLUMNS": str(columns), **environment},
    )
    assert done.returncode == 13
    os.close(slave)
    written = os.read(master, 100_000).decode().replace("\r\n", "\n")
    os.close(master)
    return written


def test_a_terminal_gets_colours_and_lines_that_fit(folder: Path) -> None:
    written = in_terminal(80, "scan", folder / "b.pkl", NO_COLOR="")
    first, second, *_ = written.splitlines()
    assert first == f"\x1b[1;31mdangerous\x1b[0m    {folder}/b.pkl"
    assert second.startswith(" " * 15 + "loading the file would use posix.system")
    assert all(len(line) <= 80 for line in written.splitlines()[1:])


def test_a_wide_terminal_gets_one_line_per_file_and_colours_can_be_refused(folder: Path) -> None:
    written = in_terminal(250, "scan", folder / "b.pkl", NO_COLOR="1")
    assert "\x1b" not in written
    assert len(written.splitlines()) == 2


def test_scanning_needs_neither_rich_nor_torch(folder: Path) -> None:
    program = (
        "import sys; from torchkeep.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('rich', 'torch', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "scan", str(folder)], capture_output=True, text=True
    )
    assert done.stderr == "[]\n"
