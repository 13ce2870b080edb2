"""What is no model file is named in one line, with what to do about it."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from torchkeep.errors import (
    FileMissing,
    FileProblem,
    FileUnreadable,
    NotAModelFile,
    UnsupportedContent,
)
from torchkeep.formats import describe


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


WEB = "The download went wrong (a log-in or an error page?): open it in a browser."
ASK = "Ask whoever gave it to you for a PyTorch or safetensors file."
LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
NO_MODELS: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "the file is empty. Save or download it again."),
    (
        "zeros",
        bytes(5000),
        "the file holds zeros. "
        "Its content was lost in a copy or a crash: take it from its source again.",
    ),
    (
        "a Git LFS pointer",
        LFS,
        "this is a Git LFS pointer, not the file it stands for. "
        "Fetch the model itself with `git lfs pull`.",
    ),
    ("HTML", b"\n<!DOCTYPE html><html></html>", f"this is a web page, not a model. {WEB}"),
    ("old HTML", b"<HTML><HEAD>", f"this is a web page, not a model. {WEB}"),
    (
        "XML",
        b"\xef\xbb\xbf<?xml version='1.0'?><Error/>",
        f"this is a web page, not a model. {WEB}",
    ),
    (
        "text",
        b"epoch,loss\n1,0.5\n",
        "this is text ('epoch,loss'...), not a model. Check the path.",
    ),
    ("JSON", b'{"a": 1}', "this is text ('{\"a\": 1}'...), not a model. Check the path."),
    ("Chinese", "\u6a21\u578b".encode() * 300, "this is text ('" + "\u6a21\u578b" * 20),
    ("Python", b"import torch\nclass A:\n    pass\n", "this is text ('import torch'...)"),
    ("C++", b"class Net {\n  int x;\n};\n", "this is text ('class Net {'...)"),
    ("a list in brackets", b"(1, 2, 3)\n", "this is text ('(1, 2, 3)'...)"),
    (
        "PNG",
        b"\x89PNG\r\n\x1a\n" + bytes(20),
        "this is a PNG picture, not a model. Check the path.",
    ),
    (
        "JPEG",
        b"\xff\xd8\xff\xe0" + bytes(20),
        "this is a JPEG picture, not a model. Check the path.",
    ),
    ("ELF", b"\x7fELF\x02" + bytes(20), "this is a program, not a model. Check the path."),
    (
        "random bytes",
        random.Random(4).randbytes(1000),
        "the file is of no known kind (it starts with d7 a5 6d 3c fc f9 a4 4d). "
        "If it should be a model, copy or download it again.",
    ),
]
OTHER_MODELS: list[tuple[str, bytes, str]] = [
    ("GGUF", b"GGUF\x03\0\0\0" + bytes(50), "a GGUF file"),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file (Keras, perhaps)"),
    ("ONNX", b"\x08\x07\x12\x07pytorch\x1a\x051.4", "an ONNX model"),
    ("NumPy", array(), "a NumPy array"),
    ("tar", tar(), "a tar archive"),
    ("gzip", gzip.compress(b"x" * 100), "a gzip archive"),
    ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.mark.parametrize(
    ("data", "message"), [r[1:] for r in NO_MODELS], ids=[r[0] for r in NO_MODELS]
)
def test_what_is_no_model_is_named(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(NotAModelFile) as caught:
        describe(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("data", "kind"), [r[1:] for r in OTHER_MODELS], ids=[r[0] for r in OTHER_MODELS]
)
def test_a_model_of_another_kind_is_named(path: Path, data: bytes, kind: str) -> None:
    path.write_bytes(data)
    with pytest.raises(UnsupportedContent) as caught:
        describe(path)
    assert str(caught.value) == f"{path}: this is {kind}, which torchkeep does not read. {ASK}"
    assert caught.value.exit_code == 7


def test_random_bytes_are_always_one_line(path: Path) -> None:
    rng = random.Random(0)
    for start in [b"", b"\x80\x02", b"\x80\x04\x95", b"PK\x03\x04", b"(", b"c", b"}", b"\x08\x08"]:
        for _ in range(40):
            path.write_bytes(start + rng.randbytes(rng.choice([1, 10, 600])))
            with pytest.raises(FileProblem) as caught:
                describe(path)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 400


def test_a_missing_file_a_folder_and_a_pipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissing) as caught:
        describe(tmp_path / "none.pth")
    assert str(caught.value) == f"{tmp_path}/none.pth: there is no such file. Check the path."
    with pytest.raises(FileUnreadable) as found:
        describe(tmp_path)
    assert str(found.value) == f"{tmp_path}: this is a folder, not a file."
