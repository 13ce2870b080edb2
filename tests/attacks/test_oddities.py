"""Files that make little sense, through every door: each gets an answer, and none is a bug."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import torchkeep
from attacks.streams import call, name, number, numbers, payload, storage, tensor, text, torch_zip
from effort import at_most
from torchkeep.cli import main

UNFOLDING = b"K\x01" + b"2\x86" * 40
"""A tuple that has two to the power of forty places."""
EMPTY = text("state") + b"]"
QUANTIZER = b"(" + name("torch", "per_tensor_affine") + text("x") + text("y") + b"t"
SMALL = b"C" + bytes([len(payload("m"))]) + payload("m")


def rebuilt(function: str, *arguments: bytes) -> bytes:
    """Return an archive with what one of PyTorch's functions makes."""
    made = call(name("torch._utils", function), *arguments)
    return torch_zip(b"\x80\x02}" + text("w") + made + b"s.")


def wrapper(cls: bytes) -> bytes:
    one = b"K\x01\x85"
    layout = name("torch", "strided")
    arguments = (cls, name("torch", "float32"), one, one, b"K\x00", layout, text("cpu"), b"\x89")
    return rebuilt("_rebuild_wrapper_subclass", *arguments)


ODDITIES = {
    "a keyword that is a number": b"\x80\x04" + name("a", "b") + b")}K\x01K\x01s\x92.",
    "an optimizer of fastai": (
        b"\x80\x02}(" + EMPTY + text("hypers") + b"](}" + text("mom") + b"K\x01s}eu."
    ),
    "a quantized tensor of floats": rebuilt(
        "_rebuild_qtensor", storage(), b"K\x00", numbers(4), numbers(1), QUANTIZER, b"\x89", b"N"
    ),
    "a nested tensor whose sizes are no integers": rebuilt(
        "_rebuild_nested_tensor", *[tensor()] * 4
    ),
    "a tensor whose class unfolds": wrapper(UNFOLDING),
    "a tensor whose class is a number": wrapper(number(1)),
    "bytes for something that unfolds": (
        b"\x80\x03" + call(call(name("a", "b"), UNFOLDING), SMALL) + b"."
    ),
    "the same bytes in many places": (
        b"\x80\x03](" + b"C\xf3\x80\x04" + b"}" * 240 + b".q\x01" + b"h\x01" * 4500 + b"e."
    ),
}


@pytest.fixture(params=ODDITIES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "a.pth"
    file.write_bytes(ODDITIES[request.param])
    return file


FLAGS = ("--json", "--tensors", "--tree", "--verify")


def test_the_command_line_has_an_answer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with at_most(250):
        commands = [
            ["inspect", *flags] for n in range(3) for flags in itertools.combinations(FLAGS, n)
        ]
        for command in (*commands, ["scan"], ["scan", "--json"], ["verify"]):
            code = main([*command, str(path)])
            shown = capsys.readouterr()
            assert code != 70, (command, shown.err)
            if "--json" in command and shown.out:
                json.loads(shown.out)


def test_from_python_it_is_read_or_refused(path: Path) -> None:
    def read_all(path: Path) -> Any:
        return dict(torchkeep.open(path))

    for read in (torchkeep.load, read_all, torchkeep.verify, torchkeep.inspect):
        problem = _problem_of(read, path)
        assert problem is None or str(path) in str(problem)


def _problem_of(read: Any, path: Path) -> torchkeep.TorchkeepError | None:
    try:
        read(path)
    except torchkeep.TorchkeepError as problem:
        return problem
    return None
