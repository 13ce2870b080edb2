"""TorchScript's code is read line by line, and what is no plain value stays text."""

from __future__ import annotations

import math
from typing import Any

import pytest

from torchkeep.formats.programs.torchscript_code import (
    ScriptClass,
    parse_code,
    parse_literal,
    unquoted,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("1.0000000000000001e-05", 1e-05),
        ("True", True),
        ("None", None),
        ('"zeros"', "zeros"),
        (r'"a\"b\\"', 'a"b\\'),
        ("(1, 2)", (1, 2)),
        ("(1, )", (1,)),
        ("()", ()),
        ("[]", []),
        ('[(1, "a"), [2.5, ], ]', [(1, "a"), [2.5]]),
        ("inf", math.inf),
        ("-inf", -math.inf),
    ],
)
def test_a_literal_has_its_value(text: str, value: Any) -> None:
    assert parse_literal(text) == value
    assert type(parse_literal(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        ")",
        "(]",
        "1 2",
        "1.2.3",
        "torch.device('cpu')",
        "annotate(List[int], [])",
        '"open',
        "uninitialized(int)",
        "(" * 500,
        "1, " * 2_000,
        "9" * 5_000,
    ],
)
def test_what_is_no_literal_stays_text(text: str) -> None:
    assert parse_literal(text) == text


def test_what_c_plus_plus_quotes_is_read_back() -> None:
    assert unquoted(r"caf\303\251\n\t\"\\") == 'café\n\t"\\'
    assert unquoted(r"\377") == "\N{REPLACEMENT CHARACTER}"
    assert unquoted("日本\\n") == "日本\n"


CODE = r"""op_version_set = 1
class Net(Module):
  __parameters__ = ["w", "odd\"name", ]
  __buffers__ = ["b", ]
  w : Tensor
  b : Tensor
  plain : Tensor
  __annotations__["0"] = __torch__.Sub
  __annotations__["x y"] = Tensor
  sizes : Final[Tuple[int, int]] = (1, 2)
  mode : Final[str] = "a] = b"
  def forward(self: __torch__.Net,
    x: Tensor) -> Tensor:
    w : Tensor = self.w
    return w
  def encode(self: __torch__.Net) -> int:
    return 1
def helper(x: int) -> int:
  return x
class Pair(NamedTuple):
  first : int
class Plain:
  a : int
"""


def test_a_file_is_taken_apart_into_classes_and_functions() -> None:
    code = parse_code({"__torch__": CODE})
    assert list(code.sources) == [
        f"__torch__.{name}" for name in ("Net", "helper", "Pair", "Plain")
    ]
    assert code.sources["__torch__.helper"] == "def helper(x: int) -> int:\n  return x\n"
    assert list(code.classes) == ["__torch__.Net", "__torch__.Pair", "__torch__.Plain"]
    assert code.classes["__torch__.Net"] == ScriptClass(
        base="Module",
        parameters=frozenset({"w", 'odd"name'}),
        buffers=frozenset({"b"}),
        constants={"sizes": (1, 2), "mode": "a] = b"},
        methods=("forward", "encode"),
    )
    assert code.classes["__torch__.Pair"].base == "NamedTuple"
    assert code.classes["__torch__.Plain"].base == ""


def test_without_a_table_of_buffers_every_other_tensor_is_one() -> None:
    text = "\n".join(line for line in CODE.split("\n") if "__buffers__" not in line)
    net = parse_code({"__torch__": text}).classes["__torch__.Net"]
    assert net.buffers == {"b", "plain", "x y"}


def test_the_first_of_two_definitions_counts() -> None:
    text = 'class A(Module):\n  __parameters__ = ["a"]\nclass A:\n  __parameters__ = ["b"]\n'
    assert parse_code({"m": text}).classes["m.A"].parameters == {"a"}
