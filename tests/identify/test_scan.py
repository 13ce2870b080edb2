"""Verdicts on many files: nothing is dropped in silence, and what can't be read is never clean."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from attacks.streams import payload, state_dict, tar_of, torch_zip, zip_of
from torchkeep.errors import FileMissing
from torchkeep.identify.scan import MODEL_SUFFIXES, Missing, Scanned, Skipped, scan, scan_each
from torchkeep.pickles.limits import Limits

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder as people download it."""
    files = {
        "README.md": b"# A model\n",
        "config.json": b'{"hidden": 5}',
        "logo.png": PNG,
        "model.pth": torch_zip(state_dict()),
        "sub/a.pkl": b"\x80\x02cproject\nNet\n)R.",
        "sub/b.pkl": payload("m"),
        "sub/deeper/z.bin": b"\x00\x01\x02 no known kind",
        ".git/objects/ab": b"x\x9c\x00",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def verdicts(*paths: Path) -> dict[str, str]:
    return {Path(item.path).name: item.verdict for item in scan(*paths)}


def skipped(*paths: Path) -> dict[str, str]:
    found = scan_each(*paths)
    return {Path(item.path).name: item.reason for item in found if isinstance(item, Skipped)}


# --- One file ------------------------------------------------------------------------------------


def test_what_torch_saves_is_data_only(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    assert scan(tmp_path / "a.pth") == (
        Scanned(str(tmp_path / "a.pth"), "torch-zip", "data-only", (), ""),
    )


def test_a_pickled_model_needs_trust(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    (found,) = scan(tmp_path / "a.pth")
    assert found.verdict == "needs-trust"
    assert found.findings[0].place == "torch.nn.modules.linear.Linear"


def test_a_broken_file_is_ambiguous_or_as_bad_as_what_it_named(tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(torch_zip(state_dict())[:100])
    (tmp_path / "bad.pkl").write_bytes(payload("m")[:-1])
    cut, bad = scan(tmp_path / "cut.pth", tmp_path / "bad.pkl")
    assert (cut.verdict, bad.verdict) == ("ambiguous", "dangerous")
    assert cut.problem.startswith("the archive is truncated")
    assert cut.findings[-1].text == cut.problem


def test_a_limit_that_is_reached_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02](" + b"N" * 1000 + b"e.")
    (found,) = scan(tmp_path / "a.pkl", limits=Limits(steps=100))
    assert found.verdict == "ambiguous"
    assert "steps=100" in found.problem


@pytest.mark.parametrize("data", [b"just text", b"<html><title>Log in</title>", POINTER, PNG, b""])
def test_what_is_no_model_is_ambiguous_if_it_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(data)
    (found,) = scan(tmp_path / "model.pth")
    assert found.verdict == "ambiguous"
    assert found.findings[0].text == found.problem != ""


def test_a_path_without_a_file_is_an_error_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"].")
    with pytest.raises(FileMissing, match=r"b\.pkl: there is no such file"):
        scan(tmp_path / "b.pkl", tmp_path / "a.pkl")
    missing, other = scan_each(tmp_path / "b.pkl", tmp_path / "a.pkl")
    assert isinstance(missing, Missing)
    assert isinstance(other, Scanned)
    assert (missing.path, other.verdict) == (str(tmp_path / "b.pkl"), "data-only")
    assert missing.to_json()["verdict"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    (found,) = scan(tmp_path)
    assert found.verdict == "ambiguous"
    assert found.problem == "this is a device or a pipe, not a file"


# --- Archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_an_archive_is_as_bad_as_the_worst_file_in_it(pack, tmp_path: Path) -> None:
    whole = ("model.pth", torch_zip(state_dict()))
    (tmp_path / "good.zip").write_bytes(pack([whole, ("readme.md", b"hello")]))
    (tmp_path / "bad.zip").write_bytes(pack([whole, ("sub/b.pkl", payload("m"))]))
    good, bad = scan(tmp_path / "good.zip", tmp_path / "bad.zip")
    assert (good.verdict, bad.verdict) == ("data-only", "dangerous")
    assert bad.findings[0].text == ("loading sub/b.pkl would use posix.system, which runs programs")


# --- Folders -------------------------------------------------------------------------------------


def test_a_folder_is_walked_in_order(folder: Path) -> None:
    found = {item.path.removeprefix(f"{folder}/"): item.verdict for item in scan(folder)}
    assert found == {
        "model.pth": "data-only",
        "sub/a.pkl": "needs-trust",
        "sub/b.pkl": "dangerous",
        "sub/deeper/z.bin": "ambiguous",
    }
    assert list(found) == sorted(found)


def test_what_is_passed_over_is_told(folder: Path) -> None:
    assert skipped(folder) == {
        ".git": "a folder of a version control system",
        "README.md": "text",
        "config.json": "JSON text",
        "logo.png": "PNG picture",
    }


def test_nothing_is_passed_over_under_a_models_suffix(tmp_path: Path) -> None:
    for suffix in MODEL_SUFFIXES:
        (tmp_path / f"a{suffix.upper()}").write_bytes(b"just text")
    assert skipped(tmp_path) == {}
    assert set(verdicts(tmp_path).values()) == {"ambiguous"}


def test_a_pickle_is_found_under_any_suffix(tmp_path: Path) -> None:
    text = b"Very well trained.\n0cposix\nsystem\n(S'true'\ntR."
    (tmp_path / "notes.txt").write_bytes(text)
    (tmp_path / "logo.png").write_bytes(payload("m"))
    (tmp_path / "none").write_bytes(torch_zip(payload("m")))
    assert verdicts(tmp_path) == dict.fromkeys(("notes.txt", "logo.png", "none"), "dangerous")


def test_a_file_of_zeros_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(bytes(100))
    assert verdicts(tmp_path) == {"a.xyz": "ambiguous"}


def test_settings_that_name_what_to_call_are_no_model_but_for_a_shell(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("_target_: project.Net\n")
    (tmp_path / "b.yaml").write_text("model:\n  _target_: os.system\n  command: ls\n")
    assert verdicts(tmp_path) == {"b.yaml": "dangerous"}
    assert list(skipped(tmp_path)) == ["a.yaml"]


def test_links_to_files_are_followed_and_links_to_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a").write_bytes(payload("m"))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.pth").symlink_to("../blobs/0a")
    (tmp_path / "snapshot" / "round").symlink_to("..")
    (tmp_path / "snapshot" / "broken.pth").symlink_to("nowhere")
    assert verdicts(tmp_path) == {
        "0a": "dangerous",
        "broken.pth": "ambiguous",
        "model.pth": "dangerous",
    }
    assert skipped(tmp_path) == {"round": "a link to a folder"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_listed_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    try:
        assert verdicts(tmp_path) == {"closed": "ambiguous"}
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_verdicts_come_one_by_one(folder: Path) -> None:
    found = scan_each(folder, folder / "missing")
    assert isinstance(next(found), Skipped)
    (folder / "model.pth").unlink()  # the walk has listed it, and has not been there
    assert {Path(item.path).name for item in found} >= {"model.pth", "missing"}


def test_an_empty_folder_has_no_verdicts(tmp_path: Path) -> None:
    assert scan(tmp_path) == ()
