"""Text under a model's name is told from models, and one kind of text from the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from formats.samples_foreign import LAMBDA
from torchkeep.contents import Contents
from torchkeep.errors import NotAModelFile, UnsupportedContent
from torchkeep.files import MemoryFile
from torchkeep.formats import examine_open
from torchkeep.formats.no_models.text import sniff
from torchkeep.pickles.limits import DEFAULT_LIMITS

WEB = "The download went wrong (a log-in or an error page?): open it in a browser."


def look(data: bytes) -> Contents:
    return examine_open(MemoryFile(data, Path("model.pth")), DEFAULT_LIMITS)


def text(value: str) -> tuple[bytes, str]:
    return value.encode(), value.splitlines()[0][:40]


PAGES = [
    (b"\n<!DOCTYPE html><html></html>", "web page (an error or log-in page?)"),
    (b"<HTML><HEAD>", "web page (an error or log-in page?)"),
    (
        b"<html><head><title>\n Sign \n in </title>",
        "web page titled 'Sign in' (an error or log-in page?)",
    ),
    (b"<?xml version='1.0'?><html>", "web page (an error or log-in page?)"),
]


@pytest.mark.parametrize(("data", "kind"), PAGES)
def test_a_web_page_is_told_with_its_title(data: bytes, kind: str) -> None:
    contents = look(data)
    assert (contents.container, contents.kind) == ("text", kind)
    assert isinstance(contents.problem, NotAModelFile)
    assert str(contents.problem) == f"model.pth: this is a web page, not a model. {WEB}"


@pytest.mark.parametrize(
    "said",
    [
        "Entry not found",
        "404: Not Found",
        "Repository Not Found\n",
        "Invalid username or password.",
        "Access to model a/b is restricted and you are not in the authorized list.",
        '{"error": "Repository not found"}',
        '{"message": "Bad credentials"}',
    ],
)
def test_a_servers_error_message_is_told(said: str) -> None:
    contents = look(said.encode())
    assert contents.kind == f"error message of a download: {said.strip()}"[: 29 + 60] + (
        "..." if len(said.strip()) > 60 else ""
    )
    assert str(contents.problem).startswith("model.pth: this is a server's error message ('")
    assert str(contents.problem).endswith(WEB)


def test_a_servers_error_in_xml_is_told() -> None:
    contents = look(b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")
    assert contents.kind == "error message of a server in XML"
    assert WEB in str(contents.problem)


KINDS: list[tuple[str, str]] = [
    ("epoch,loss\n1,0.5\n", "table of 2 columns"),
    ("a\tb\tc\n1\t2\t3\n4\t5\t6\n", "table of 3 columns"),
    ("<?xml version='1.0'?><note/>", "XML text"),
    ('{"a": 1}', "JSON text"),
    ("[1, 2]", "JSON text"),
    ("lr: 0.1\nmodel:\n  name: x\n", "YAML text"),
    ("# run\n\nlr: 0.1\nlayers:\n- 3\n- 4\n", "YAML text"),
    ("---\n- a\n", "YAML text"),
    ("import torch\nclass A:\n    pass\n", "Python source"),
    ("'''A module.'''\n\nfrom torch import nn\n", "Python source"),
    ("#!/usr/bin/env python3\nx = 1\n", "Python script"),
    ("#!/bin/sh\nls\n", "script"),
    ("class Net {\n  int x;\n};\n", "text"),
    ("(1, 2, 3)\n", "text"),
    ("Dear all,\n\nhere is the model.\n", "text"),
    ("\u6a21\u578b" * 300, "text"),
    ("{not json}", "text"),
]


@pytest.mark.parametrize(("value", "kind"), KINDS, ids=[row[0][:15] for row in KINDS])
def test_kinds_of_text_are_told(value: str, kind: str) -> None:
    contents = look(value.encode())
    assert (contents.container, contents.kind) == ("text", kind)
    assert isinstance(contents.problem, NotAModelFile)
    article = "a " if kind.startswith("table") or kind.endswith("script") else ""
    line = value.splitlines()[0][:40]
    assert str(contents.problem) == (
        f"model.pth: this is {article}{kind} ({line!r}...), not a model. Check the path."
    )
    assert contents.findings == ()


OTHERS: list[tuple[Any, str]] = [
    ({"learner": {}, "version": [2, 0]}, "XGBoost model in JSON"),
    ({"base_code": {"magic": "pir"}, "program": {}}, "PaddlePaddle program in JSON"),
    ({"metadata": {}, "weight_map": {"a": "b"}}, "table of the shards of a model"),
]


@pytest.mark.parametrize(("value", "kind"), OTHERS)
def test_models_of_other_ecosystems_in_json_are_named(value: Any, kind: str) -> None:
    contents = look(json.dumps(value).encode())
    assert contents.kind == kind
    assert isinstance(contents.problem, UnsupportedContent)


def test_a_model_of_lightgbm_is_named() -> None:
    contents = look(b"tree\nversion=v4\nnum_class=1\n")
    assert contents.kind == "LightGBM model"
    assert isinstance(contents.problem, UnsupportedContent)


def test_code_in_a_keras_configuration_needs_trust() -> None:
    contents = look(json.dumps(LAMBDA).encode())
    assert contents.kind == "Keras configuration without weights: Sequential, 2 layers"
    assert [(f.rule, f.severity) for f in contents.findings] == [("keras-lambda", "needs-trust")]


def test_python_objects_in_yaml_need_trust() -> None:
    contents = look(b"a: 1\nb: !!python/object/apply:os.system [ls]\n")
    assert [(f.rule, f.severity) for f in contents.findings] == [("yaml-object", "needs-trust")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin1"])
@pytest.mark.parametrize("length", range(505, 516))
def test_text_in_other_encodings_is_text(encoding: str, length: int) -> None:
    value = ("h\u00e4llo w\u00f6rld, how are you? " * 30)[:length]
    data = value.encode(encoding)
    if encoding == "utf-16-be":
        data = b"\xfe\xff" + data
    assert sniff(data[:512], len(data))
    assert look(data).container == "text"


@pytest.mark.parametrize("data", [b"", b"abc\0def", b"\xff\xfe\0", b"a\x07b", b"%PDF-1.4\nx"])
def test_what_is_no_text_is_not_taken_for_text(data: bytes) -> None:
    assert not sniff(data, len(data))


def test_a_large_json_text_is_not_parsed() -> None:
    assert look(b'{"error": "' + b"x" * 5_000_000 + b'"}').kind == "JSON text"
