"""A file that several programs read differently: what each sees, and what is said of it."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from formats.building import Call, rules, torch_records
from formats.samples_archives import saved, tar_file, zip_archive
from formats.seven_zip_writer import seven_zip
from torchkeep.contents import Contents, Global
from torchkeep.errors import FileProblem, NotAModelFile
from torchkeep.formats import examine

PICKLE = pickle.dumps({"epoch": 3}, 2)
PROGRAM = b"MZ\x90\0" + b"This program unpacks itself.\0" * 20
EVIL = zip_archive([("evil.pkl", pickle.dumps(Call(eval, ("1",)), 2))])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def written(path: Path, data: bytes) -> Contents:
    path.write_bytes(data)
    return examine(path)


def counted_from_the_start(front: bytes, archive: bytes) -> bytes:
    """Return both, the archive's offsets counting from the start of the whole."""
    data = bytearray(archive)
    end = data.rindex(b"PK\5\6")
    count, _, offset = struct.unpack_from("<HLL", data, end + 10)
    struct.pack_into("<L", data, end + 16, offset + len(front))
    position = offset
    for _ in range(count):
        lengths = struct.unpack_from("<3H", data, position + 28)
        (start,) = struct.unpack_from("<L", data, position + 42)
        struct.pack_into("<L", data, position + 42, start + len(front))
        position += 46 + sum(lengths)
    return front + bytes(data)


def torch_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in torch_records():
            archive.writestr(name, data)
    return buffer.getvalue()


# --- A zip archive behind something else ----------------------------------------------------------


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_a_zip_behind_a_pickle_is_a_second_view(path: Path, adjusted: bool, comment: bytes) -> None:
    archive = EVIL[:-2] + struct.pack("<H", len(comment)) + comment
    data = counted_from_the_start(PICKLE, archive) if adjusted else PICKLE + archive
    contents = written(path, data)
    assert zipfile.is_zipfile(path)
    assert pickle.loads(data) == contents.root == {"epoch": 3}
    assert contents.container == "pickle"
    assert ("polyglot", "ambiguous") in rules(contents)
    assert Global("builtins", "eval") in contents.globals
    assert [member.container for member in contents.members] == ["archive"]


def test_the_findings_of_the_second_view_are_told_as_its_own(path: Path) -> None:
    bad = zip_archive([("../evil.pkl", PICKLE)])
    contents = written(path, saved([1], zipped=False) + bad)
    places = [finding.place for finding in contents.findings if finding.rule == "path-escape"]
    assert places == ["zip: ../evil.pkl"]


def test_a_second_view_that_is_broken_is_told_all_the_same(path: Path) -> None:
    archive = bytearray(EVIL)
    archive[:4] = b"XXXX"
    contents = written(path, PICKLE + bytes(archive))
    assert ("polyglot", "ambiguous") in rules(contents)
    assert isinstance(contents.members[0].problem, FileProblem)


@pytest.mark.parametrize("adjusted", [False, True])
def test_a_program_that_unpacks_itself_is_described_as_what_it_unpacks(
    path: Path, adjusted: bool
) -> None:
    archive = torch_archive()
    data = counted_from_the_start(PROGRAM, archive) if adjusted else PROGRAM + archive
    contents = written(path, data)
    assert (contents.container, contents.problem) == ("torch-zip", None)
    assert (contents.path, contents.nbytes) == (path, len(data))
    assert ("polyglot", "ambiguous") in rules(contents)
    stored = contents.root["w"].storage
    assert data[stored.offset : stored.offset + 16] == struct.pack("<4f", 0, 1, 2, 3)


def test_a_zip_with_data_in_front_is_none_to_torch_load_and_one_to_zipfile(path: Path) -> None:
    contents = written(path, b"#!/usr/bin/env python\n" + torch_archive())
    assert ("polyglot", "ambiguous") in rules(contents)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)  # the file was written a line above


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("adjusted", [False, True])
def test_torch_jit_takes_offsets_from_the_start_of_the_file_only(
    path: Path, adjusted: bool
) -> None:
    torch.jit.script(nn.Linear(1, 1)).save(str(path))
    program = path.read_bytes()
    path.write_bytes(counted_from_the_start(PROGRAM, program) if adjusted else PROGRAM + program)
    assert ("polyglot", "ambiguous") in rules(examine(path))
    if adjusted:
        torch.jit.load(str(path))  # the file was written a line above
    else:
        with pytest.raises(RuntimeError, match="failed reading zip archive"):
            torch.jit.load(str(path))


def test_an_empty_zip_directory_is_no_view(path: Path) -> None:
    contents = written(path, PICKLE[:-1] + b"." + zip_archive([]))
    assert rules(contents) == [("trailing-bytes", "ambiguous")]


def test_the_mark_of_a_directory_by_chance_is_no_view(path: Path) -> None:
    for tail in (b"PK\5\6", b"PK\5\6" + bytes(40), b"PK\5\6" + b"\xff" * 60):
        contents = written(path, pickle.dumps({"data": b"x" * 500 + tail}, 2))
        assert contents.findings == ()


# --- Tar ------------------------------------------------------------------------------------------


def tar_polyglot(front: bytes) -> bytes:
    """Return a file that starts with these bytes and is a tar of one file, too."""
    block = bytearray(tarfile.TarInfo("storages").tobuf(tarfile.USTAR_FORMAT))
    block[: len(front)] = front
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")
def test_a_pickle_that_is_a_tar_is_ambiguous(path: Path) -> None:
    contents = written(path, tar_polyglot(PICKLE))
    assert contents.container == "pickle"
    assert ("polyglot", "ambiguous") in rules(contents)
    with pytest.raises(KeyError, match="storages"):
        torch.load(path, weights_only=False)  # it looks for the files of a tar


def test_a_zip_that_is_a_tar_is_ambiguous(path: Path) -> None:
    front = bytearray(tar_polyglot(b"PK\3\4"))
    contents = written(path, counted_from_the_start(bytes(front), torch_archive()))
    assert tarfile.is_tarfile(path)
    assert contents.container == "torch-zip"
    assert ("polyglot", "ambiguous") in rules(contents)
    assert torch.load(path, weights_only=True)["w"].shape == (4,)


# --- No second view -------------------------------------------------------------------------------


BENIGN: dict[str, Any] = {
    "a tar whose last file is a zip": tar_file([("a.txt", b"x"), ("model.pth", torch_archive())]),
    "a packed tar of a zip": gzip.compress(tar_file([("model.pth", torch_archive())])),
    "a stored 7z of a zip": seven_zip([("model.pth", torch_archive())], coders="copy"),
    "a zip of a zip": zip_archive([("model.pth", torch_archive())]),
    "a legacy stream": saved({"w": torch.ones(3)}, zipped=False),
}


@pytest.mark.parametrize("name", BENIGN)
def test_an_honest_file_has_one_view(path: Path, name: str) -> None:
    contents = written(path, BENIGN[name])
    assert contents.findings == ()
    assert contents.problem is None


def test_a_zip_hidden_in_a_tar_outside_of_its_files_is_a_second_view(path: Path) -> None:
    """The blocks of a file's bytes are no header, so the zip is none of the tar's files."""
    front = tar_file([("a.bin", b"\xd7" * 600)], padding=512)
    contents = written(path, counted_from_the_start(front, EVIL))
    assert ("polyglot", "ambiguous") in rules(contents)
    assert Global("builtins", "eval") in contents.globals


def test_text_alone_stays_text(path: Path) -> None:
    contents = written(path, b"hello, this is no model\n" * 10)
    assert isinstance(contents.problem, NotAModelFile)
    assert contents.members == ()
