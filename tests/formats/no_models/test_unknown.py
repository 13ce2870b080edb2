"""What is no model is told by the bytes that it starts with."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from torchkeep.contents import Contents
from torchkeep.errors import NotAModelFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.pickles.limits import DEFAULT_LIMITS


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.pth")), DEFAULT_LIMITS)


FILES = [
    (b"", "empty file", "the file is empty. Save or download it again."),
    (
        bytes(5000),
        "file of zeros",
        "the file holds zeros. "
        "Its content was lost in a copy or a crash: take it from its source again.",
    ),
    (
        b"\x89PNG\r\n\x1a\n" + bytes(20),
        "PNG picture",
        "this is a PNG picture, not a model. Check the path.",
    ),
    (
        b"RIFF\x10\0\0\0WAVEfmt \x01\x02",
        "WAV sound",
        "this is a WAV sound, not a model. Check the path.",
    ),
    (
        b"%PDF-1.4\n%\xe2\xe3",
        "PDF document",
        "this is a PDF document, not a model. Check the path.",
    ),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(9),
        "document of an old Office",
        "this is a document of an old Office, not a model. Check the path.",
    ),
    (
        random.Random(4).randbytes(1000),
        "file of no known kind",
        "the file is of no known kind (it starts with d7 a5 6d 3c fc f9 a4 4d). "
        "If it should be a model, copy or download it again.",
    ),
    (b"MZ" + bytes(62), "file of no known kind", "the file is of no known kind"),
]


@pytest.mark.parametrize(("data", "kind", "said"), FILES, ids=[row[1] for row in FILES])
def test_what_is_no_model_is_named(data: bytes, kind: str, said: str) -> None:
    contents = look(data)
    assert (contents.container, contents.kind) == ("unknown", kind)
    assert isinstance(contents.problem, NotAModelFile)
    assert str(contents.problem).startswith(f"model.pth: {said}")
    assert contents.findings == ()


def test_a_model_of_xgboost_is_named() -> None:
    contents = look(b"{L\0\0\0\0\0\0\0\7learner{L\0\0\0\0\0\0\0\12attributes{}")
    assert contents.kind == "XGBoost model in UBJSON"
    assert isinstance(contents.problem, UnsupportedContent)
    assert "this is an XGBoost model in UBJSON, which" in str(contents.problem)


PROGRAMS = [
    (b"\x7fELF\x02" + bytes(20), "program", "a program"),
    (b"MZ" + bytes(58) + b"\x80\0\0\0" + bytes(99), "Windows program", "a Windows program"),
    (b"\xcf\xfa\xed\xfe" + bytes(20), "macOS program", "a macOS program"),
    (b"\0asm\1\0\0\0", "WebAssembly program", "a WebAssembly program"),
    (b"dex\n035\0" + bytes(20), "Android program", "an Android program"),
]


@pytest.mark.parametrize(("data", "kind", "name"), PROGRAMS, ids=[row[1] for row in PROGRAMS])
def test_programs_need_trust(data: bytes, kind: str, name: str) -> None:
    contents = look(data)
    assert contents.kind == kind
    assert [(f.rule, f.severity) for f in contents.findings] == [("program", "needs-trust")]
    assert f"this is {name}, not a model" in str(contents.problem)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite model"),
        (b"\x08\x01\x12\x90\x02\x0a\x07serve\0\0", "a TensorFlow SavedModel"),
        (b"tjgg\x03\0\0\0" + bytes(20), "a GGML model of 2023 (ggjt)"),
        (b"RKNN\0\0\0\0" + bytes(20), "an RKNN model"),
        (b"ZF0x10\0\0" + bytes(20), "a compressed pickle of an old joblib"),
    ],
)
def test_models_without_a_reader_are_named(data: bytes, name: str) -> None:
    contents = look(data)
    assert isinstance(contents.problem, UnsupportedContent)
    assert f"this is {name}, which torchkeep describes and does not load" in str(contents.problem)


def test_zeros_are_looked_for_in_the_middle_and_at_the_end() -> None:
    assert look(bytes(5_000) + b"x" + bytes(5_000)).kind == "file of no known kind"
    assert look(bytes(50_000) + b"x").kind == "file of no known kind"
    assert look(bytes(50_000)).kind == "file of zeros"
