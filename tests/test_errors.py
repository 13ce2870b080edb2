"""What a caller can catch, and what tells one problem from another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torchkeep
from torchkeep import errors
from torchkeep.errors import MissingExtra, TorchkeepError, WrongArgument

SOURCES = sorted(Path(torchkeep.__file__).parent.rglob("*.py"))


def every_error(root: type[TorchkeepError] = TorchkeepError) -> set[type[TorchkeepError]]:
    return {root}.union(*map(every_error, root.__subclasses__()))


def test_the_drawing_has_every_error_with_its_exit_code():
    drawing = (errors.__doc__ or "").splitlines()
    for kind in every_error() - {TorchkeepError, errors.FileProblem}:
        lines = [line for line in drawing if f"── {kind.__name__} " in line]
        assert len(lines) == 1, kind
        if "exit_code" in vars(kind):
            assert lines[0].endswith(f"exit code {kind.exit_code}")


def test_the_root_is_caught_and_never_raised_itself():
    raised = [
        (path.name, node.lineno)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("TorchkeepError")
    ]
    assert raised == []


def test_a_missing_extra_names_what_is_missing_and_the_command():
    error = MissingExtra.for_modules("the demo", ["torch", "PIL"], "demo")
    assert str(error) == (
        "the demo needs torch, PIL, not installed here. "
        "Install it with: pip install 'torchkeep[demo]'"
    )


@pytest.mark.parametrize(("kind", "code"), [(MissingExtra, 11), (WrongArgument, 12)])
def test_what_is_no_failed_proof_does_not_exit_like_one(kind: type[TorchkeepError], code: int):
    assert kind.exit_code == code
